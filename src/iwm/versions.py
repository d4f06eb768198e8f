"""Versions of what is kept on disk: one rule for every format.

Each format carries a whole number that grows by one when its layout changes. Software reads its
own version and those before it down to ``readable``; between that and ``oldest`` `iwm migrate`
brings a file up to date; what is newer is refused, never guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass

from iwm.errors import DataError, IwmError


@dataclass(frozen=True)
class Format:
    """One format on disk."""

    name: str
    """For people, e.g. ``recording``."""
    current: int
    """What this software writes."""
    readable: int = 1
    """The oldest version that it reads as it is."""
    oldest: int = 1
    """The oldest version that it can bring up to date."""
    error: type[IwmError] = DataError

    def check(self, found: object, where: object) -> int:
        """The version found, if this software reads it.

        Args:
            found: what the file says.
            where: names the file in errors.

        Raises:
            IwmError: of the class ``error``: no version, a newer one, or one to migrate first.
        """
        version = self.known(found, where)
        if version < self.readable:
            raise self.error(
                f"{where}: version {version} is older than this software's {self.current}; "
                "run `iwm migrate`"
            )
        return version

    def known(self, found: object, where: object) -> int:
        """The version found, if this software reads it or can bring it up to date.

        Raises:
            IwmError: of the class ``error``: no version, a newer one, or one that is too old.
        """
        if not isinstance(found, int) or isinstance(found, bool):
            raise self.error(f"{where}: has no version; it was not made by iwm")
        if found > self.current:
            raise self.error(
                f"{where}: version {found} is newer than this software's {self.current}; "
                "upgrade iwm"
            )
        if found < self.oldest:
            raise self.error(
                f"{where}: version {found} is older than the oldest that can be brought up to "
                f"date, {self.oldest}; make it anew"
            )
        return found
