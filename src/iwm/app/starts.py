"""Real frames to begin from: held-out play, which no training step saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iwm.errors import DataError
from iwm.serving.dreaming import Start
from iwm.serving.preprocess import Preprocess

if TYPE_CHECKING:
    from iwm.data.reader import ShardStore

Image = npt.NDArray[np.uint8]
SPLITS = ("test", "val")


class HeldOut:
    """Frames of the first split that is not for training and not empty.

    Args:
        store: the shards.
        preprocess: brings frames to the model's size.
        vocabulary: of the model; recordings with other actions are left out.
        context: most frames of a start.

    Raises:
        DataError: no held-out frame whose recording has only actions of the vocabulary.
    """

    def __init__(
        self,
        store: ShardStore,
        preprocess: Preprocess,
        vocabulary: Sequence[str] = (),
        context: int = 1,
    ) -> None:
        self._store, self._preprocess, self._context = store, preprocess, context
        known = [
            name
            for name in store.recordings
            if not vocabulary or set(store.vocabulary(name)) <= set(vocabulary)
        ]
        if not known:
            raise DataError(
                f"{store.folder}: no recording has only actions of the model's vocabulary: "
                f"{', '.join(vocabulary)}"
            )
        self._rows = _held_out(store, known)
        keys = [key.rpartition("/") for key in store.keys(self._rows)]
        self._episode = [key[0] for key in keys]
        self._step = [int(key[2]) for key in keys]
        self._names = [
            store.vocabulary(store.recordings[place]) for place in store.recording_ids[self._rows]
        ]
        self._action: npt.NDArray[np.int64] = store.actions()[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def image(self, place: int) -> tuple[Image, str]:
        """Frame ``place`` (any number; counted round) at its recorded size, and its caption."""
        place %= len(self)
        return self._store.decode(self._rows[place : place + 1])[0], self._caption(place)

    def start(self, place: int) -> Start:
        """The run of frames that ends in frame ``place``, as long as the model looks back."""
        place %= len(self)
        begin = place
        while place - begin + 1 < self._context and self._follows(begin):
            begin -= 1
        frames = [
            self._preprocess(image) for image in self._store.decode(self._rows[begin : place + 1])
        ]
        return Start(
            np.stack(frames),
            tuple(self._name(at) for at in range(begin, place)),
            self._caption(place),
        )

    def _follows(self, place: int) -> bool:
        """Whether frame ``place`` is the one after the frame before it in the list."""
        return (
            place > 0
            and self._episode[place] == self._episode[place - 1]
            and self._step[place] == self._step[place - 1] + 1
        )

    def _name(self, place: int) -> str | None:
        action, names = int(self._action[place]), self._names[place]
        return names[action] if 0 <= action < len(names) else None

    def _caption(self, place: int) -> str:
        recording, _, episode = self._episode[place].rpartition("/")
        return f"{recording}, episode {int(episode)}, frame {self._step[place]}"


def _held_out(store: ShardStore, recordings: list[str]) -> Any:
    for split in SPLITS:
        try:
            return store.rows(split, recordings)
        except DataError:
            continue
    raise DataError(f"{store.folder}: no held-out frames of {', '.join(recordings)}")
