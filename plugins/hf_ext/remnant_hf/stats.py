"""What a cache holds, as plain numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CacheStats", "LayerStats"]


@dataclass(frozen=True)
class LayerStats:
    """One layer.

    Attributes:
        index: the model's layer index.
        kind: `remnant` for a governed layer, else the stock layer's class name.
        seen: tokens that went through.
        stored: real slots per sequence and KV head; empty for stock layers.
        bytes: keys and values stored, spare room not counted.
        allocated: bytes of all buffers, spare room and side state included.
        evicted: slots dropped or merged away, over all sequences and heads.
    """

    index: int
    kind: str
    seen: int
    stored: list[list[int]]
    bytes: int
    allocated: int
    evicted: int


@dataclass(frozen=True)
class CacheStats:
    """A whole cache; byte counts include stock layers.

    Attributes:
        seen: tokens that went through, padding included.
        bytes: keys and values stored now.
        allocated: bytes of all buffers now.
        peak_bytes: most bytes that the governed layers' buffers held at once, plus the stock layers' now.
        evicted: slots dropped or merged away, over all layers, sequences and heads.
        layers: one entry per layer of the model.
    """

    seen: int
    bytes: int
    allocated: int
    peak_bytes: int
    evicted: int
    layers: tuple[LayerStats, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)
