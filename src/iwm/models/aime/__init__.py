"""AIME: the DPGMM variational recurrent autoencoder. See docs/aime.md."""

from iwm.models.aime.model import DPGMMVariationalRecurrentAutoencoder

__all__ = ["DPGMMVariationalRecurrentAutoencoder"]
