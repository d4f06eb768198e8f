"""Which way a view moves: the shift between pictures, by cross-correlation (scikit-image)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_GREY = np.array([0.299, 0.587, 0.114])


def horizontal_flow(before: Array, after: Array) -> Array:
    """Apparent motion to the right in whole pixels: positive where a camera turns left.

    The shift at which a picture correlates best with the one before it (a game's turns shift by
    a fifth of the picture, more than gradients can follow). The sides are faded out, as what
    leaves the view on one side does not come in again on the other.

    Args:
        before: uint8 [N, H, W, 3].
        after: the same shape, the next frames.

    Returns:
        float64 [N].
    """
    from skimage.registration import phase_cross_correlation

    fade = np.minimum(1.0, 3 * np.hanning(before.shape[2]))

    def prepare(picture: Array) -> Array:
        grey = picture @ _GREY
        faded: Array = (grey - grey.mean()) * fade
        return faded

    shifts = [
        # The shift that brings the second back onto the first. Plain correlation, without the
        # phase's whitening: fine grain is what compression changes most.
        phase_cross_correlation(  # type: ignore[no-untyped-call]
            prepare(first), prepare(second), normalization=None
        )[0][1]
        for first, second in zip(before, after, strict=True)
    ]
    return -np.array(shifts, np.float64)
