"""Blocks in memory: least recently used goes first, never above the limit, never while it is in use."""

from __future__ import annotations

from collections import OrderedDict

from remnant_vllm.blockstore.stats import Counts

__all__ = ["Host"]


class Host:
    """Bytes by key; not safe for threads, its owner locks.

    Args:
        limit: most bytes of all payloads together.
        counts: where evictions and refusals are counted.

    Attributes:
        used: bytes held now.
        pinned: bytes of these that are in use.
    """

    def __init__(self, limit: int, counts: Counts) -> None:
        """See the class."""
        self.limit, self.counts, self.used, self.pinned = limit, counts, 0, 0
        self._blocks: OrderedDict[bytes, memoryview] = OrderedDict()
        self._pins: dict[bytes, int] = {}

    def __contains__(self, key: bytes) -> bool:
        """Whether the block is here; does not count as use."""
        return key in self._blocks

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._blocks)

    def get(self, key: bytes) -> memoryview | None:
        """The block, now the most recently used."""
        if key not in self._blocks:
            return None
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def put(self, key: bytes, payload: memoryview) -> bool:
        """Take a block in, evicting as needed.

        Returns:
            Whether it is here now; not if what may be evicted does not make room for it.
        """
        if self.get(key) is not None:
            return True
        if not self._make_room(payload.nbytes):
            self.counts.add("host_full")
            return False
        self._blocks[key] = payload
        self.used += payload.nbytes
        return True

    def pin(self, key: bytes) -> None:
        """Keep a block that is here until it is unpinned as often as it was pinned."""
        if key not in self._pins:
            self._pins[key] = 0
            self.pinned += self._blocks[key].nbytes
        self._pins[key] += 1

    def unpin(self, key: bytes) -> None:
        """Undo one `pin`."""
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]
            self.pinned -= self._blocks[key].nbytes

    def _make_room(self, size: int) -> bool:
        if size > self.limit - self.pinned:
            return False
        while self.used + size > self.limit:
            victim = next(key for key in self._blocks if key not in self._pins)
            self.used -= self._blocks.pop(victim).nbytes
            self.counts.add("host_evicted")
        return True
