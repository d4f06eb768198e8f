"""Errors a user can act on: one line that names the thing and the reason.

Every command turns an :class:`IwmError` into that one line and its exit code, mostly 1;
any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class IwmError(Exception):
    """Base of every error that is the user's to mend, not ours."""

    exit_code: ClassVar[int] = 1


class ConfigError(IwmError):
    """A parameter is unknown, out of range or contradicts another."""


class DataError(IwmError):
    """A recording, frame, log or shard cannot be used; the message names the file."""


class ModelError(IwmError):
    """A checkpoint cannot be loaded or does not fit the data it meets."""


class TrainingError(IwmError):
    """Training stopped: a loss that is not finite, or a request to stop."""


class GateFailed(IwmError):
    """A gate's figure missed its threshold; the message says which and by how much."""


class TrackingError(IwmError):
    """The tracking server or registry cannot do what was asked."""


class ClusterError(IwmError):
    """A host or process that shares the work was lost; running it again goes on."""

    exit_code = 75
    """EX_TEMPFAIL of sysexits(3): flows try again."""


class ServiceError(IwmError):
    """The inference service cannot be built, started or reached."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with one line and a code on an error that is the user's to mend.

    That is every :class:`IwmError`, and what the system refuses: a full disk, a read-only
    folder, a missing file.
    """
    try:
        yield
    except IwmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
