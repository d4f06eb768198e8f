"""Start a model from another trained phase's released weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from iwm.errors import ModelError
from iwm.models.aime import DPGMMVariationalRecurrentAutoencoder
from iwm.models.encoder import load_state
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights
from iwm.models.vqvae.autoencoder import VQVAE, load_tokenizer

_ENCODERS = ("encoder", "online")


def start_from(model: nn.Module, folder: Path) -> int:
    """Copy a released model's image encoder, and of the rest those layers that fit.

    A model that holds a tokenizer takes the other, a tokenizer of the same shape, whole. A
    variational recurrent model takes another whole, but for the components of its prior where
    their numbers differ.

    The vision transformer must fit, though the other's may be deeper: ``model.encoder`` and,
    where there is one, ``model.online`` get its weights. Another layer of them (a readout), or of
    ``model.predictor``, is copied when the other model has one of the same name whose
    tensors all have the same shapes; the others keep their fresh weights (a deeper
    predictor's last blocks, an action vector of another width).

    Args:
        model: freshly built, trainable.
        folder: ``config.json`` and ``model.safetensors`` of the other.

    Returns:
        How many of the predictor's tensors were copied; all that were, where there is none.

    Raises:
        ModelError: no model there, or its transformer has another shape (the tensor is named).
    """
    read_config(folder)
    weights = read_weights(folder)
    where = str(folder / WEIGHTS_FILE)
    if isinstance(tokenizer := getattr(model, "tokenizer", None), VQVAE):
        load_tokenizer(tokenizer, weights, where)
        return 0
    if isinstance(model, DPGMMVariationalRecurrentAutoencoder):
        return model.go_on_from(weights, where)
    encoder = _under("encoder.", weights)
    transformer = _under("vit.", encoder)
    if not transformer:
        raise ModelError(f"{where}: holds no encoder to start from")
    for name in _ENCODERS:
        own = getattr(model, name, None)
        if own is not None:
            # A shallower model takes the first blocks.
            known = own.vit.state_dict()
            mine = {
                name: value
                for name, value in transformer.items()
                if name in known or not name.startswith("blocks.")
            }
            load_state(own.vit, mine, where)
            _copy_fitting(own, encoder)
    predictor = getattr(model, "predictor", None)
    return 0 if predictor is None else _copy_fitting(predictor, _under("predictor.", weights))


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part, under its own names."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _copy_fitting(module: nn.Module, weights: dict[str, Tensor]) -> int:
    """Copy the layers (bare parameters stand for themselves) that fit in whole."""

    def layer(name: str) -> str:
        return name.rpartition(".")[0] or name

    own = module.state_dict()
    fits = {name for name in own if name in weights and weights[name].shape == own[name].shape}
    unfit = {layer(name) for name in own if name not in fits}
    copied = {name: weights[name] for name in own if layer(name) not in unfit}
    module.load_state_dict(copied, strict=False)
    return len(copied)
