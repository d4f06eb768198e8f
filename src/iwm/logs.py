"""One log format for stages, flows, training and the service, and the run id that joins them.

``IWM_LOG_FORMAT=json``: one JSON object a line, with ``time`` (UTC, ISO 8601), ``level``,
``logger``, ``message``, ``run_id``, ``version``, and where they apply ``stage``, ``phase`` and
``rank``. Otherwise (``text``, the default) people read the lines, and nothing here is done.

``IWM_RUN_ID`` names a run through all its processes: whoever is first makes it, everything below
inherits it, as a flow's stages and torchrun's workers do.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from datetime import UTC, datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any, TextIO, cast

from iwm.errors import ConfigError

RUN_ID = "IWM_RUN_ID"
FORMAT = "IWM_LOG_FORMAT"
FORMATS = ("text", "json")

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_USERINFO = re.compile(r"://[^/\s\"']*@")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|NOTIFY_URL|CREDENTIALS")
_SECRET_LENGTH = 6
"""Values shorter than this would blot out ordinary words."""
_LEVELS = {"error: ": logging.ERROR, "warning: ": logging.WARNING}


def run_id(environ: MutableMapping[str, str] = os.environ) -> str:
    """The run's id; made, and put into ``environ``, when there is none.

    Raises:
        ConfigError: ``IWM_RUN_ID`` is not 1 to 64 letters, digits, ``.``, ``_`` and ``-``.
    """
    found = environ.get(RUN_ID)
    if not found:
        found = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        environ[RUN_ID] = found
    if not _RUN_ID.fullmatch(found):
        raise ConfigError(
            f"{RUN_ID}: expected 1 to 64 letters, digits, '.', '_' or '-', beginning with a "
            f"letter or digit (given {found[:80]!r})"
        )
    return found


def as_json(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether logs are JSON.

    Raises:
        ConfigError: ``IWM_LOG_FORMAT`` is neither ``text`` nor ``json``.
    """
    chosen = environ.get(FORMAT) or FORMATS[0]
    if chosen not in FORMATS:
        raise ConfigError(f"{FORMAT}: expected text or json (given {chosen[:80]!r})")
    return chosen == "json"


def secrets_of(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The values of variables whose names say that they are secret, the longest first."""
    found = {
        value
        for name, value in environ.items()
        if len(value) >= _SECRET_LENGTH and _SECRET.search(name.upper())
    }
    return tuple(sorted(found, key=len, reverse=True))


def without_secrets(text: str, known: Iterable[str]) -> str:
    """``text`` without what is ``known`` to be secret, nor names and passwords in addresses."""
    for value in known:
        text = text.replace(value, "***")
    return _USERINFO.sub("://", text)


def object_of(line: str) -> dict[str, Any] | None:
    """The log object in a line of this format; ``None`` for any other line."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    fits = isinstance(found, dict) and {"time", "level", "message"} <= found.keys()
    return found if fits else None


def plain(line: str) -> str:
    """A line of either format as people read it: ``error: ...`` for an error."""
    found = object_of(line)
    if found is None:
        return line
    prefix = next((word for word, level in _LEVELS.items() if _name(level) == found["level"]), "")
    return f"{prefix}{found['message']}"


def _name(level: int) -> str:
    return logging.getLevelName(level).lower()


class JsonFormatter(logging.Formatter):
    """One JSON object a record; a message of several lines gives one for each.

    A line that is such an object already (a stage's, passed on by its flow) stays as it is.

    Args:
        fields: further fields of every record, e.g. ``stage``.
    """

    def __init__(self, fields: Mapping[str, str] | None = None) -> None:
        from pythonjsonlogger.json import JsonFormatter as Formatter

        super().__init__()
        # Both take longer to look up than a line takes to write.
        self._fields = {"version": version("iwm"), **(fields or {})}
        self._secrets = secrets_of()
        self._json = Formatter(json_ensure_ascii=False)

    def format(self, record: logging.LogRecord) -> str:
        """The record's lines."""
        lines = record.getMessage().splitlines() or [""]
        raised = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        return "\n".join(self._line(record, line, raised or "") for line in lines)

    def _line(self, record: logging.LogRecord, line: str, raised: str) -> str:
        if object_of(line) is not None:
            return line
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": _name(record.levelno),
            "logger": record.name,
            "message": without_secrets(line, self._secrets),
            "run_id": os.environ.get(RUN_ID),
            **self._fields,
            **{key: value for key, value in vars(record).items() if key in EXTRA},
        }
        if values["run_id"] is None:  # a server is no run
            del values["run_id"]
        if raised:
            values["exception"] = without_secrets(raised, self._secrets)
        return str(self._json.jsonify_log_record(values))


EXTRA = ("call", "status", "seconds", "flow_name", "flow_run_name", "task_run_name")
"""What records may carry beside their message."""


class Lines(io.TextIOBase):
    """A text stream whose lines become log records.

    Args:
        logger: gets them; ``error: `` and ``warning: `` before a line say its level.
        beneath: what is wrapped; other programs go on writing to its file descriptor.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, logger: logging.Logger, beneath: TextIO) -> None:
        self._logger, self._beneath, self._rest = logger, beneath, ""

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The wrapped stream's."""
        return self._beneath.fileno()

    def write(self, text: str) -> int:
        """Log every line that is whole."""
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        for line in lines:
            self._log(line)
        return len(text)

    def flush(self) -> None:
        """What is not a whole line waits."""
        self._beneath.flush()

    def end(self) -> None:
        """Log the last line, should it lack its end."""
        rest, self._rest = self._rest, ""
        self._log(rest)

    def _log(self, line: str) -> None:
        if not line.strip():
            return
        level = logging.INFO
        for word, meant in _LEVELS.items():
            if line.startswith(word):
                line, level = line.removeprefix(word), meant
        self._logger.log(level, "%s", line.rstrip())


def configure(stage: str, phase: str | None = None, *, answers: bool = False) -> None:
    """Log in the chosen format from here on; call once, where a program begins.

    Args:
        stage: what runs, e.g. ``train``.
        phase: of the stage.
        answers: whether standard output holds an answer for other programs, and stays as it is.

    Raises:
        ConfigError: a variable holds what it cannot.
    """
    import atexit

    run_id()
    if not as_json():
        return
    fields = {"stage": stage, "phase": phase, "rank": os.environ.get("RANK")}
    formatter = JsonFormatter({key: value for key, value in fields.items() if value})
    take_over(formatter)
    logger = logging.getLogger("iwm")
    logger.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    err = Lines(logging.getLogger("iwm.stderr"), sys.stderr)
    sys.stderr = cast(TextIO, err)
    atexit.register(err.end)
    if not answers:
        out = Lines(logging.getLogger("iwm.stdout"), sys.stdout)
        sys.stdout = cast(TextIO, out)
        atexit.register(out.end)


def take_over(formatter: logging.Formatter) -> None:
    """Let every logger's lines for people go to standard error in ``formatter``'s words."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    known = [root.manager.loggerDict[name] for name in list(root.manager.loggerDict)]
    for logger in (root, *known):
        if isinstance(logger, logging.PlaceHolder):
            continue
        shown = [item for item in logger.handlers if _for_people(item)]
        for item in shown:
            logger.removeHandler(item)
        if shown or logger is root:
            logger.addHandler(handler)


def _for_people(handler: logging.Handler) -> bool:
    """Whether a handler writes to the terminal (a file's does not)."""
    if isinstance(handler, logging.FileHandler):
        return False
    return isinstance(handler, logging.StreamHandler) or type(handler).__name__ == "RichHandler"


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    words = f"{kind.__name__}: {error}".splitlines()[0]
    logging.getLogger("iwm").critical("%s", words, exc_info=(kind, error, trace))
