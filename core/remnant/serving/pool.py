"""vLLM's pool of KV blocks in numbers: how layers share it, and what one request takes out of it.

Source: vLLM 0.32, `v1/core/kv_cache_utils.py` and `v1/kv_cache_interface.py`. Differs: where layers have pages of
different sizes, the smaller ones get longer blocks, which is what vLLM does in one of its layouts only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from remnant.serving.counts import Mode, gone_blocks, live_blocks
from remnant.serving.model import Layer

__all__ = ["Bucket", "Engine", "Eviction", "Pool", "Use", "buckets"]


@dataclass(frozen=True)
class Engine:
    """How the server is set.

    Attributes:
        block_size: tokens per block.
        element: bytes per stored number.
        tp: devices that share the heads of a layer.
        chunk: most tokens of a step (`--max-num-batched-tokens`).
        overlap: steps that may be under way at once; 2 with asynchronous scheduling, vLLM's default on a GPU.
    """

    block_size: int
    element: int
    tp: int = 1
    chunk: int = 8192
    overlap: int = 2


@dataclass(frozen=True)
class Eviction:
    """What a policy leaves of a full-attention layer.

    Attributes:
        mode: see `gone_blocks`.
        budgets: tokens per KV head for each full-attention layer; one entry counts for all of them, which then share a
            block table.
    """

    mode: Mode
    budgets: tuple[int, ...]


@dataclass(frozen=True)
class Bucket:
    """Layers that vLLM treats alike, so that they can share block tables.

    Attributes:
        layer: one of them.
        count: how many.
        block_size: tokens per block of theirs.
        mode: of eviction.
        budget: tokens per KV head; None evicts nothing.
    """

    layer: Layer
    count: int
    block_size: int
    mode: Mode = "prompt"
    budget: int | None = None

    def held(self, allocated: int, settled: int, prompt: int) -> int:
        """Blocks of one table, when room for `allocated` tokens is taken and `settled` ones are known to be written."""
        return -(-allocated // self.block_size) - self._left_behind(settled, prompt)

    def _left_behind(self, settled: int, prompt: int) -> int:
        span = self.layer.span
        if self.layer.window == "sliding":
            return max(0, settled - span + 1) // self.block_size
        if self.layer.window == "chunked":
            return settled // span * span // self.block_size
        if self.budget is None:
            return 0
        return gone_blocks(self.mode, settled, prompt, self.budget, self.block_size)

    def demanded(self, total: int, in_flight: int) -> int:
        """Blocks of one table that start-up wants to be there for a request of full length."""
        size, span = self.block_size, self.layer.span
        if self.layer.window == "sliding":
            return -(-min(span - 1 + in_flight, total) // size) + 1
        if self.layer.window == "chunked":
            return -(-min(span + in_flight, total) // size)
        full = -(-total // size)
        if self.budget is None or self.mode != "stream":
            return full
        return min(full, live_blocks(self.budget, in_flight, size))


def buckets(layers: Iterable[Layer], engine: Engine, eviction: Eviction | None = None) -> list[Bucket]:
    """The layers of a model as vLLM groups them, with or without eviction."""
    layers = list(layers)
    page = max(layer.token_bytes(engine.element, engine.tp) for layer in layers)
    found: dict[tuple[Layer, int | None, int], int] = {}
    place = 0
    for layer in layers:
        budget, own = None, 0
        if eviction is not None and layer.window == "none":
            budget = eviction.budgets[place % len(eviction.budgets)]
            own = place if len(eviction.budgets) > 1 else 0  # specifications that name their layer are never equal
            place += 1
        key = (layer, budget, own)
        found[key] = found.get(key, 0) + 1
    mode: Mode = eviction.mode if eviction is not None else "prompt"

    def longer(layer: Layer) -> int:
        times, rest = divmod(page, layer.token_bytes(engine.element, engine.tp))
        return engine.block_size * (1 if rest else times)

    return [Bucket(layer, count, longer(layer), mode, budget) for (layer, budget, _), count in found.items()]


@dataclass(frozen=True)
class Use:
    """What requests take out of the pool.

    Attributes:
        peak_blocks: most that one request holds, ever.
        steady_blocks: what it holds while it writes its answer, at the end.
        requests: how many fit while one of them is being read.
        decoding: how many fit when all of them write.
        demanded_blocks: what start-up wants for one request of full length.
        concurrency: the figure that vLLM logs at start, which is the pool over those.
    """

    peak_blocks: int
    steady_blocks: int
    requests: int
    decoding: int
    demanded_blocks: int
    concurrency: float


class Pool:
    """The blocks that a number of bytes makes.

    Args:
        parts: the layers.
        engine: the server.
        memory: bytes for the KV cache on each device.

    Attributes:
        tables: block tables of each bucket: each holds a block id for the same tokens.
        block_bytes: bytes of a block on each device, all layers of a table together.
        blocks: how many there are; vLLM keeps one for itself.
    """

    def __init__(self, parts: list[Bucket], engine: Engine, memory: int) -> None:
        """See the class."""
        counts = [part.count for part in parts]
        width = min(counts)
        if max(counts) < 1.5 * width:
            width = max(counts)
        self.parts, self.engine = parts, engine
        self.tables = [-(-count // width) for count in counts]
        page = max(part.layer.token_bytes(engine.element, engine.tp) for part in parts) * engine.block_size
        self.block_bytes = width * page
        self.blocks = memory // self.block_bytes

    def held(self, allocated: int, settled: int, prompt: int) -> int:
        """Blocks of one request over all tables."""
        pairs = zip(self.parts, self.tables, strict=True)
        return sum(tables * part.held(allocated, settled, prompt) for part, tables in pairs)

    def use(self, prompt: int, total: int) -> Use:
        """What requests of `prompt` tokens take that end with `total`."""
        late = max(self.held(*step, prompt) for step in self._late(prompt, total))
        peak = max(late, *(self.held(*step, prompt) for step in self._early(prompt, total)))
        in_flight = self.engine.chunk * self.engine.overlap
        pairs = zip(self.parts, self.tables, strict=True)
        demanded = sum(tables * part.demanded(total, in_flight) for part, tables in pairs)
        usable = max(0, self.blocks - 1)
        requests = 1 + (usable - peak) // late if usable >= peak else 0
        return Use(peak, late, requests, usable // late, demanded, self.blocks / demanded)

    def _early(self, prompt: int, total: int) -> Iterator[tuple[int, int]]:
        """(allocated, settled) of every step that reads the prompt, and of the first ones after it."""
        chunk, behind = self.engine.chunk, self.engine.overlap - 1
        for start in range(0, prompt, chunk):
            yield min(start + chunk, prompt), max(0, start - behind * chunk)
        for t in range(prompt, min(total, prompt + behind)):
            yield t + 1, prompt - 1

    def _late(self, prompt: int, total: int) -> Iterator[tuple[int, int]]:
        """(allocated, settled) of the last steps: the count of blocks goes up and down by one on the way."""
        behind = self.engine.overlap - 1
        first = max(prompt + behind, total - 2 * max(part.block_size for part in self.parts))
        if first >= total:
            yield total, total
        for t in range(first, total):
            yield t + 1, t - behind
