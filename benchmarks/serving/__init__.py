"""The inference service beside other ways to serve the same weights; see ``__main__``."""
