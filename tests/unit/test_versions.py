"""One rule for the versions of what is kept on disk."""

from __future__ import annotations

import pytest

from iwm.errors import DataError, ModelError
from iwm.versions import Format

FORMAT = Format("toy", current=4, readable=3, oldest=2, error=ModelError)


@pytest.mark.parametrize("version", [3, 4])
def test_what_is_readable_is_read(version: int) -> None:
    assert FORMAT.check(version, "x.json") == version


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (5, "x.json: version 5 is newer than this software's 4; upgrade iwm"),
        (2, "x.json: version 2 is older than this software's 4; run `iwm migrate`"),
        (1, "x.json: version 1 is older than the oldest that can be brought up to date, 2"),
        (0, "oldest"),
        (-1, "oldest"),
        (None, "x.json: has no version; it was not made by iwm"),
        ("4", "has no version"),
        (True, "has no version"),
        (4.0, "has no version"),
    ],
)
def test_what_is_not_readable_is_refused_in_one_line(version: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        FORMAT.check(version, "x.json")


def test_what_can_be_brought_up_to_date_is_known() -> None:
    assert FORMAT.known(2, "x.json") == 2
    with pytest.raises(DataError, match="older than the oldest"):
        Format("new", current=1).known(0, "x.json")
