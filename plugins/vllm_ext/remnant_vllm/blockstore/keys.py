"""What a block means: a chain of hashes over everything that its keys and values depend on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Sequence

__all__ = ["KEY_BYTES", "Chain"]

KEY_BYTES = 32

Labels = Iterable[Sequence[str]]


class Chain:
    """SHA-256 over the tokens of a sequence, block by block; equal keys mean equal tokens from the very start.

    Args:
        namespace: keeps unrelated uses of one store apart.
        block_size: tokens per block.
        labels: what the whole sequence depends on besides its tokens, as tuples of strings: an adapter, a salt.

    Attributes:
        keys: one key of 32 bytes per whole block hashed so far.

    Example: len(Chain("prefix", 2).grow([5, 6, 7, 8, 9], 2)) -> 2
    """

    def __init__(self, namespace: str, block_size: int, labels: Labels = ()) -> None:
        """See the class."""
        self.block_size = block_size
        self.keys: list[bytes] = []
        self._last = _digest(b"remnant chain 1", [("namespace", namespace), ("block", str(block_size)), *labels])

    def grow(
        self, tokens: Sequence[int], blocks: int, labels: Callable[[int, int], Labels] | None = None
    ) -> list[bytes]:
        """The keys of the first blocks; what was hashed before is not hashed again.

        Args:
            tokens: ids of the whole sequence, at least `blocks * block_size`; it may only have grown since last time.
            blocks: how many keys are wanted.
            labels: (first token, end) of a block -> what that block depends on besides tokens: an image and where.
        """
        size = self.block_size
        for start in range(len(self.keys) * size, blocks * size, size):
            ids = array("q", tokens[start : start + size])
            if len(ids) < size:
                raise ValueError(f"{len(tokens)} tokens do not fill {blocks} blocks of {size}")
            self._last = _digest(self._last + ids.tobytes(), labels(start, start + size) if labels else ())
            self.keys.append(self._last)
        return self.keys[:blocks]


def _digest(head: bytes, labels: Labels) -> bytes:
    """Every part carries its length, so no two inputs are written the same way."""
    hasher = hashlib.sha256(len(head).to_bytes(8, "little") + head)
    for label in labels:
        hasher.update(len(label).to_bytes(8, "little"))
        for part in label:
            raw = part.encode()
            hasher.update(len(raw).to_bytes(8, "little") + raw)
    return hasher.digest()
