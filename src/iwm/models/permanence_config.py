"""Configuration of the critic of object permanence. Plain values only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from iwm.data.apparitions import ApparitionConfig
from iwm.errors import ConfigError
from iwm.models.config import Positive
from iwm.settings import settings


@settings
class PermanenceConfig:
    """Which pictures, how fine, how wide."""

    image_size: tuple[Positive, Positive]
    """Height and width."""
    fit: Literal["resize", "crop"] = "resize"
    """How pictures of another size were made to fit: the shards' own way."""
    cell: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    """Pixels of a cell's side: each cell is asked whether what it shows is still there."""
    width: Positive = 48
    """Numbers for each cell."""
    match: Positive = 32
    """Numbers by which cells of two frames are matched."""
    head: Positive = 64
    """Width of what judges a cell beside its match."""
    reach: tuple[Positive, Positive] = (3, 6)
    """How many cells up or down, and across, something may go from one frame to the next."""
    pos_weight: Annotated[float, Field(gt=0)] = 10.0
    """Weight of cells that lost something; they are rare."""
    removed: Annotated[float, Field(ge=0, le=1)] = 0.35
    """Share of the training's runs from which an engine took an object away, where there are
    such; into the others objects are put."""
    apparitions: ApparitionConfig = ApparitionConfig()

    def __post_init__(self) -> None:
        """Refuse pictures that cells do not divide."""
        if any(side % self.cell for side in self.image_size):
            raise ConfigError(
                f"model.cell {self.cell} does not divide images of {list(self.image_size)}"
            )

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns (h, w)."""
        return self.image_size[0] // self.cell, self.image_size[1] // self.cell
