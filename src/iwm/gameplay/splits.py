"""Which side of the train/validation/test divide an episode is on.

A hash of (salt, recording, episode) decides, nothing else: adding, removing or
re-recording other episodes never moves one, and no list has to be kept. The price
is that a small recording may have no held-out episode at all; forcing one over
would make the split depend on what else is there, so an empty split is reported
(:func:`empty_splits`) and never filled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from iwm.errors import ConfigError
from iwm.gameplay.config import SplitConfig
from iwm.gameplay.index import SPLITS


def check_split(cfg: SplitConfig) -> None:
    """Refuse shares that leave nothing to train on.

    Raises:
        ConfigError: ``val`` and ``test`` together reach 1.
    """
    if cfg.val + cfg.test >= 1.0:
        raise ConfigError(
            f"ingest.split: val {cfg.val} + test {cfg.test} leave no episode to train on; "
            "their sum must stay below 1"
        )


def split_of(recording: str, episode: int, cfg: SplitConfig) -> str:
    """The split of one episode: ``"train"``, ``"val"`` or ``"test"``.

    The first 64 bits of SHA-256 over salt, recording and episode are a uniform
    draw in [0, 1); ``test`` takes its top, ``val`` the part below, so changing
    ``val`` never moves an episode in or out of ``test``.
    """
    # Length prefixes keep ("a", "b/1") and ("a/b", "1") apart.
    text = f"{len(cfg.salt)}:{cfg.salt}/{len(recording)}:{recording}/{episode}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    if draw >= 1.0 - cfg.test:
        return "test"
    if draw >= 1.0 - cfg.test - cfg.val:
        return "val"
    return "train"


def empty_splits(splits: Iterable[str], cfg: SplitConfig) -> list[str]:
    """The splits that were asked for and got no episode, in the order of ``SPLITS``."""
    wanted = {"train": 1.0 - cfg.val - cfg.test, "val": cfg.val, "test": cfg.test}
    present = set(splits)
    return [name for name in SPLITS if wanted[name] > 0 and name not in present]
