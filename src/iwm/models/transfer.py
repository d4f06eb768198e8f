"""Start a model from another trained phase's released weights."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from iwm.errors import ModelError
from iwm.models.encoder import load_state
from iwm.models.saving import WEIGHTS_FILE, read_config, read_weights

_ENCODERS = ("encoder", "online")


def start_from(model: nn.Module, folder: Path) -> int:
    """Copy a released model's encoder, and the layers of its predictor that fit.

    The encoder must fit as a whole: ``model.encoder`` and, where there is one,
    ``model.online`` get its weights. A layer of ``model.predictor`` is copied when the other
    predictor has one of the same name whose tensors all have the same shapes; the others
    keep their fresh weights (a deeper predictor's last blocks, another width of action).

    Args:
        model: freshly built, trainable.
        folder: ``config.json`` and ``model.safetensors`` of the other.

    Returns:
        How many of the predictor's tensors were copied.

    Raises:
        ModelError: no model there, or its encoder has another shape (the tensor is named).
    """
    read_config(folder)
    weights = read_weights(folder)
    where = str(folder / WEIGHTS_FILE)
    encoder = {
        name.removeprefix("encoder."): value
        for name, value in weights.items()
        if name.startswith("encoder.")
    }
    if not encoder:
        raise ModelError(f"{where}: holds no encoder to start from")
    for name in _ENCODERS:
        own = getattr(model, name, None)
        if own is not None:
            load_state(own, encoder, where)
    predictor = getattr(model, "predictor", None)
    if predictor is None:
        return 0
    fitting = _fitting_layers(predictor.state_dict(), weights)
    predictor.load_state_dict(fitting, strict=False)
    return len(fitting)


def _fitting_layers(own: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of those layers (bare parameters stand for themselves) that fit in whole."""

    def layer(name: str) -> str:
        return name.rpartition(".")[0] or name

    other = {name: weights.get(f"predictor.{name}") for name in own}
    fits = {
        name: value
        for name, value in other.items()
        if value is not None and value.shape == own[name].shape
    }
    unfit = {layer(name) for name in own if name not in fits}
    return {name: value for name, value in fits.items() if layer(name) not in unfit}
