"""LitServe over the same engine.

    python -m benchmarks.serving.lit MODEL_FOLDER PORT MAX_BATCH

One endpoint, ``/predict``, whose requests say which call they mean, so that one worker holds
one copy of the weights, as in the other subjects. With ``MAX_BATCH`` above 1 its own batching
collects for a millisecond: with its default of 0 an idle worker spins on its queue.
"""

import base64
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np

PIXELS = 16_777_216


class EngineAPI(litserve.LitAPI):
    """Encode, predict and rollout by the engine, in batches of one call."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self._folder = folder

    def setup(self, device: str) -> None:
        """In the worker's process."""
        from iwm.serving.engine import Engine

        self._engine = Engine.load(self._folder, device)

    def decode_request(self, request) -> Any:  # LitServe makes a route of the annotation
        """Pixels, or a latent with its actions ``[K, A]``."""
        if request["call"] == "encode":
            data = base64.b64decode(request["image_b64"])
            return "encode", self._engine.preprocess.decode(data, PIXELS), None
        single = request["call"] == "predict"
        actions = [request["aug_params"]] if single else request["aug_seq"]
        return (
            request["call"],
            np.asarray(request["z_cls"], np.float32),
            np.asarray(actions, np.float32),
        )

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they are; :meth:`predict` stacks."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """One row each."""
        return output

    def predict(self, x: Any) -> Any:
        """Rows of one item, or of a batch of them."""
        items = x if isinstance(x, list) else [x]
        first = np.stack([item[1] for item in items])
        if items[0][0] == "encode":
            rows: list[Any] = list(self._engine.encode(first).z_cls)
        else:
            made = self._engine.rollout(first, np.stack([item[2] for item in items]))
            rows = list(made.z_cls[:, 0] if items[0][0] == "predict" else made.z_cls)
        return rows if isinstance(x, list) else rows[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        """A list of numbers."""
        return {"z": output.tolist()}


if __name__ == "__main__":
    most = int(sys.argv[3])
    batching = {"max_batch_size": most, "batch_timeout": 0.001} if most > 1 else {}
    litserve.LitServer(
        EngineAPI(Path(sys.argv[1]), **batching), accelerator="cpu", fast_queue=True
    ).run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        generate_client_file=False,
        num_api_servers=1,
        log_level="error",
        access_log=False,
    )
