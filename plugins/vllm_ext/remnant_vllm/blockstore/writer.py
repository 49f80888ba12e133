"""Writes blocks to disk beside the engine: a bounded queue and one thread."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict

from remnant_vllm.blockstore.disk import Disk
from remnant_vllm.blockstore.stats import Counts

__all__ = ["Writer"]

_log = logging.getLogger("vllm.remnant")


class Writer:
    """Hands blocks to a disk in the order they came.

    Args:
        disk: where they go.
        limit: most bytes that wait.
        counts: where blocks that are not written are counted.
    """

    def __init__(self, disk: Disk, limit: int, counts: Counts) -> None:
        """See the class."""
        self.disk, self.limit, self.counts, self.pending_bytes = disk, limit, counts, 0
        self._waiting: OrderedDict[bytes, memoryview] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = self._complained = False
        self._thread = threading.Thread(target=self._run, name="remnant-writer", daemon=True)
        self._thread.start()

    def put(self, key: bytes, payload: memoryview) -> bool:
        """Queue a block.

        Returns:
            Whether it waits now; not when the queue is full or closed, which is counted.
        """
        with self._changed:
            if key in self._waiting:
                return True
            if self._closing or self.pending_bytes + payload.nbytes > self.limit:
                self.counts.add("unwritten_blocks")
                return False
            self._waiting[key] = payload
            self.pending_bytes += payload.nbytes
            self._changed.notify_all()
        return True

    def get(self, key: bytes) -> memoryview | None:
        """A block that still waits."""
        with self._changed:
            return self._waiting.get(key)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything queued so far is written or given up; whether that came to pass in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """Write what waits, then stop; what is left when the time is up is counted as not written."""
        with self._changed:
            first, self._closing = not self._closing, True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            left = len(self._waiting)
            if left and first:
                self.counts.add("unwritten_blocks", left)
                _log.warning("remnant: %d blocks were not written within %s s of shutdown", left, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                key, payload = next(iter(self._waiting.items()))
            self._write(key, payload)
            with self._changed:
                self.pending_bytes -= self._waiting.pop(key).nbytes
                self._changed.notify_all()

    def _write(self, key: bytes, payload: memoryview) -> None:
        try:
            if key in self.disk or self.disk.write(key, payload):
                return
        except Exception:
            _log.exception("remnant: writing a block failed")
        self.counts.add("unwritten_blocks")
        if not self._complained:
            self._complained = True
            _log.warning("remnant: a block was not written to %s; this is counted and not repeated", self.disk.root)
