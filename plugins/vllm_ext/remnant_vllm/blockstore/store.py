"""Memory in front of a folder, and leases: blocks that were promised stay in memory until they are used."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import NamedTuple

from remnant.errors import ConfigError
from remnant_vllm.blockstore.disk import Disk
from remnant_vllm.blockstore.host import Host
from remnant_vllm.blockstore.options import StoreOptions
from remnant_vllm.blockstore.stats import Counts
from remnant_vllm.blockstore.writer import Writer

__all__ = ["PATIENCE_S", "BlockStore", "Leased"]

PATIENCE_S = 30.0
"""How long a shutdown waits for the disk, in seconds."""


class Leased(NamedTuple):
    """What a lease got.

    Attributes:
        blocks: leading blocks that are in memory now.
        from_disk: how many of these were read from disk for it.
    """

    blocks: int
    from_disk: int


class BlockStore:
    """Blocks of one layout by key.

    Args:
        options: limits and folder.
        fingerprint: how the bytes of a block are laid out.
        block_bytes: bytes of every block; None when they differ.

    Attributes:
        counts: everything that happened.

    Raises:
        ConfigError: not even one block fits into memory.
        OSError: the folder cannot be made or read.
    """

    def __init__(self, options: StoreOptions, fingerprint: bytes, block_bytes: int | None = None) -> None:
        """See the class."""
        if block_bytes is not None and block_bytes > options.host_bytes:
            raise ConfigError(
                f"host_bytes={options.host_bytes} is less than one block", accepted=f"at least {block_bytes} per worker"
            )
        self.counts = Counts()
        self._host = Host(options.host_bytes, self.counts)
        self._disk: Disk | None = None
        self._writer: Writer | None = None
        if options.path is not None and options.disk_bytes:
            folder, limit = options.path, options.disk_bytes
            self._disk = Disk(folder, limit, fingerprint, self.counts, block_bytes, options.fsync)
            self._writer = Writer(self._disk, options.pending_bytes, self.counts)
            # Nobody promises to call close(): what waits is written when the interpreter ends, too.
            weakref.finalize(self, self._writer.close, PATIENCE_S)
        self._leases: dict[str, list[bytes]] = {}
        self._lock = threading.RLock()

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Places of the blocks that `put` should be called for; the others count as used.

        A block in memory whose file is gone, or was never written, is queued for writing again.
        """
        with self._lock:
            return [place for place, key in enumerate(keys) if not self._have(key)]

    def _have(self, key: bytes) -> bool:
        on_disk = self._disk is not None and self._disk.touch(key)
        payload = self._host.get(key)
        if payload is not None and not on_disk and self._writer is not None:
            self._writer.put(key, payload)
        return on_disk or payload is not None

    def put(self, key: bytes, payload: memoryview) -> None:
        """Keep a block in memory and have it written, each as far as limits allow."""
        with self._lock:
            self.counts.add("saved_blocks")
            self.counts.add("saved_bytes", payload.nbytes)
            self._host.put(key, payload)
            if self._writer is not None:
                self._writer.put(key, payload)

    def get(self, key: bytes) -> memoryview | None:
        """A block from wherever it is, checked if from disk, and in memory from now on if it fits."""
        with self._lock:
            payload = self._host.get(key)
            if payload is None and (payload := self._fetch(key)) is not None:
                self._host.put(key, payload)
            return payload

    def _fetch(self, key: bytes) -> memoryview | None:
        waiting = self._writer.get(key) if self._writer is not None else None
        if waiting is not None or self._disk is None:
            return waiting
        return self._disk.read(key)

    def lease(self, owner: str, keys: Sequence[bytes]) -> Leased:
        """Bring as many leading blocks as possible into memory and keep them there until `release`.

        An owner has one lease; asking again replaces it.
        """
        with self._lock:
            before = self._leases.pop(owner, [])
            held: list[bytes] = []
            read = 0
            for key in keys:
                found = self._pin(key)
                if found is None:
                    self.counts.add("misses")
                    break
                held.append(key)
                read += found == "disk_hits"
                self.counts.add(found)
            for key in before:
                self._host.unpin(key)
            if held:
                self._leases[owner] = held
            return Leased(len(held), read)

    def _pin(self, key: bytes) -> str | None:
        where = "host_hits"
        if self._host.get(key) is None:
            where = "disk_hits"
            payload = self._fetch(key)
            if payload is None or not self._host.put(key, payload):
                return None
        self._host.pin(key)
        return where

    def leased(self, owner: str) -> int:
        """Blocks that an owner holds."""
        with self._lock:
            return len(self._leases.get(owner, ()))

    def release(self, owner: str) -> None:
        """End a lease, if there is one."""
        with self._lock:
            for key in self._leases.pop(owner, ()):
                self._host.unpin(key)

    def gauges(self) -> dict[str, int]:
        """What is held at the moment, in bytes."""
        return {
            "host_bytes": self._host.used,
            "disk_bytes": self._disk.used if self._disk is not None else 0,
            "pending_bytes": self._writer.pending_bytes if self._writer is not None else 0,
        }

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything put so far is on disk or given up; whether that came to pass in time."""
        return self._writer is None or self._writer.flush(timeout_s)

    def close(self, timeout_s: float | None = PATIENCE_S) -> None:
        """Write what waits and stop writing; what cannot be written in time is counted."""
        if self._writer is not None:
            self._writer.close(timeout_s)
