"""BentoML services. Read by BentoML before it starts a worker, so quiet defaults go here."""

import os

ENVIRONMENT = {
    "BENTOML_DO_NOT_TRACK": "True",
    # Tracing that nobody collects costs 100 ms pauses at the 99th percentile.
    "OTEL_SDK_DISABLED": "true",
    # Compute threads that spin while they wait starve the requests of the other workers.
    "OMP_WAIT_POLICY": "PASSIVE",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
