"""What happened in a memory, told to whoever subscribed: ids and counts, never texts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger("remnant.memory")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Args:
        name: `recalled`, `recall_failed`, `applied`, `forgotten`, `opened`, `closed`, `queued`,
            `distilled`, `distil_failed`, `quarantined`, `embed_failed`, `recover_failed`; by hosts `journal_failed`,
            `journal_late` (a write went on without being waited for), `verdict_failed`.
        scope: whose memory.
        data: ids, counts, the text of an error.
    """

    name: str
    scope: str
    data: Mapping[str, Any]


class Events:
    """Subscribers of one memory; a subscriber that raises is logged and hurts nobody."""

    def __init__(self) -> None:
        """Without subscribers."""
        self._subscribers: list[Callable[[Event], None]] = []

    def subscribe(self, function: Callable[[Event], None]) -> Callable[[], None]:
        """Call the function with every event from now on, in the thread where it happens.

        Returns:
            A function that ends the subscription.
        """
        self._subscribers.append(function)
        return lambda: self._subscribers.remove(function) if function in self._subscribers else None

    def emit(self, name: str, scope: str, **data: Any) -> None:
        """Tell every subscriber; faults are logged as well, for nobody may be listening."""
        if name.endswith("_failed"):
            _log.warning("%s in scope %r: %s", name, scope, data)
        for function in list(self._subscribers):
            try:
                function(Event(name, scope, data))
            except Exception:  # whatever a subscriber does, the memory goes on
                _log.exception("a subscriber failed on %s", name)
