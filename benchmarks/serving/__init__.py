"""The inference service beside other ways to serve the same weights; see ``__main__``."""

CALLS = ("encode", "predict", "rollout")
"""Of every server; here, where it imports nothing, as threads are set before torch is imported."""
