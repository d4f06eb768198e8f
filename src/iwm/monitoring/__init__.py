"""Prometheus metrics of stages, flows and training: names, files for node_exporter, HTTP."""
