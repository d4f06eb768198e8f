"""From a client's picture to the pixels the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Preprocess:
    """Bicubic resize to ``size`` (height, width); normalising is the model's own first step.

    ``fit`` is how the shards it learned from were made: ``resize`` squeezes the whole
    frame; ``crop`` keeps the aspect and cuts the centre.
    """

    size: tuple[int, int]
    fit: str = "crop"

    @classmethod
    def of_model(cls, model: Any) -> Preprocess:
        """As the checkpoint says."""
        height, width = model.config.image_size
        return cls((height, width), model.config.fit)

    def __call__(self, image: Image) -> Image:
        """``[H, W, 3]`` uint8 to ``[*size, 3]`` uint8."""
        height, width = image.shape[:2]
        if (height, width) == self.size:
            return image
        from PIL import Image as PillowImage

        box: tuple[float, float, float, float] | None = None
        if self.fit == "crop":
            scale = min(height / self.size[0], width / self.size[1])
            high, wide = self.size[0] * scale, self.size[1] * scale
            left, top = (width - wide) / 2, (height - high) / 2
            box = (left, top, left + wide, top + high)
        picture = PillowImage.fromarray(image)
        bicubic = PillowImage.Resampling.BICUBIC
        return np.asarray(picture.resize(self.size[::-1], bicubic, box=box))

    def decode(self, data: bytes, max_pixels: int) -> Image:
        """Decode a PNG or JPEG and fit it.

        Raises:
            DataError: not an image that can be used; the reason in one line.
        """
        from iwm.gameplay.images import decode_image

        return self(decode_image(data, max_pixels))
