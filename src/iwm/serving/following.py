"""Follow the registry: load a newer champion beside the old one, then let it take over.

Nothing waits meanwhile: the new model is loaded and warmed up in a thread of its own, the
exchange is one assignment, requests in work end with the models they began with, and the old
model is released with the last of them.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwm.errors import IwmError
from iwm.serving.models import load_variant

if TYPE_CHECKING:
    from iwm.serving.dreaming import Dreamer
    from iwm.serving.embodied import Imaginer
    from iwm.serving.engine import Engine
    from iwm.serving.runtime import Runtime

logger = logging.getLogger("iwm.serving")

Fetch = Callable[[Mapping[str, Any], Path], bool]
"""(card of a served model, empty folder) -> whether its champion moved and now lies there."""

MAX_WAIT_S = 3600.0


class Follower:
    """Looks for newer champions at an interval.

    Args:
        runtime: whose models are exchanged.
        fetch: what asks the registry; any ``IwmError`` of it is a line in the log.
        interval_s: between two looks; twice as long after each look that failed.
    """

    def __init__(self, runtime: Runtime, fetch: Fetch, interval_s: float) -> None:
        self._runtime, self._fetch, self._interval_s = runtime, fetch, interval_s
        self._stop = threading.Event()
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="iwm-follow", daemon=True)

    def start(self) -> None:
        """Begin to look, an interval from now."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A model that is being loaded is not waited for."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(min(self._interval_s * 2**self._failures, MAX_WAIT_S)):
            try:
                self.look()
                self._failures = 0
            except IwmError as error:
                self._failures = min(self._failures + 1, 12)
                logger.error("the registry's champion is not taken over: %s", error)
            except Exception:
                # What a registry or a file system can raise has no common base; the model that
                # serves now must go on serving, and the next look must come.
                self._failures = min(self._failures + 1, 12)
                logger.exception("the registry's champion is not taken over")

    def look(self) -> bool:
        """Look once; returns whether models were exchanged.

        Raises:
            IwmError: the registry cannot be reached, or its champion cannot be served.
        """
        models = self._runtime.models
        if models is None:
            return False
        newer = {}
        for variant, card in models.cards().items():
            if engine := self._newer(variant, card):
                newer[variant] = engine
                _carry_bank(models.engines().get(variant), engine)
        if not newer or self._stop.is_set():
            return False
        self._runtime.exchange(models.replaced(newer))
        for variant, engine in newer.items():
            logger.info("%s: %s answers from now on", variant, engine.name)
        return True

    def _newer(self, variant: str, card: Mapping[str, Any]) -> Engine | Dreamer | Imaginer | None:
        folder = Path(tempfile.mkdtemp(prefix="iwm-champion-"))
        config = self._runtime.config
        try:
            if self._fetch(card, folder):
                engine = load_variant(variant, folder, config)
                # What lies beside the weights is read later; it goes when the engine goes.
                weakref.finalize(engine, shutil.rmtree, folder, ignore_errors=True)
                return engine
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _carry_bank(before: Any, engine: Any) -> None:
    """The status page's frames, where both know latents."""
    from iwm.serving.engine import Engine
    from iwm.serving.page.bank import carry_bank

    if isinstance(before, Engine) and isinstance(engine, Engine):
        carry_bank(before, engine)
