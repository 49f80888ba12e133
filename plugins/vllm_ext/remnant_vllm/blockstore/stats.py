"""What the store counts."""

from __future__ import annotations

import threading

__all__ = ["COUNTERS", "GAUGES", "Counts"]

COUNTERS = {
    "saved_blocks": "Blocks copied out of the engine.",
    "saved_bytes": "Bytes copied out of the engine.",
    "loaded_blocks": "Blocks copied into the engine.",
    "loaded_bytes": "Bytes copied into the engine.",
    "host_hits": "Blocks found in memory when a request asked.",
    "disk_hits": "Blocks found on disk when a request asked.",
    "misses": "Requests whose known prefix ended before what they could have reused.",
    "host_full": "Blocks that memory could not take because all of it was in use.",
    "host_evicted": "Blocks evicted from memory.",
    "disk_evicted": "Files evicted from disk.",
    "written_blocks": "Files written.",
    "written_bytes": "Bytes of files written.",
    "unwritten_blocks": "Blocks meant for disk and not written: queue full, disk limit, error, or shutdown.",
    "corrupt_files": "Files dropped because they were damaged or cut short.",
    "foreign_files": "Files dropped because they belong to another model, layout, rank or block.",
    "disk_errors": "Errors of the operating system while reading or writing files.",
}
GAUGES = {
    "host_bytes": "Bytes of blocks in memory.",
    "disk_bytes": "Bytes of files in the folder, as far as this worker knows.",
    "pending_bytes": "Bytes waiting to be written.",
}


class Counts:
    """Counters since the start and since the last report; safe to use from several threads."""

    def __init__(self) -> None:
        """All at zero."""
        self.total = dict.fromkeys(COUNTERS, 0)
        self._reported = dict(self.total)
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1) -> None:
        """Count up."""
        with self._lock:
            self.total[name] += amount

    def news(self) -> dict[str, int]:
        """What was counted since the last call, without zeros."""
        with self._lock:
            news = {name: n - self._reported[name] for name, n in self.total.items() if n != self._reported[name]}
            self._reported = dict(self.total)
        return news
