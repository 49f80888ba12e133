"""How long a pass takes: reckoned from bytes and operations, or measured."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from remnant.errors import ConfigError, unknown
from remnant.speculative.memory_model import MemoryModel
from remnant.speculative.sizes import Sizes

__all__ = ["DEVICES", "Costs", "Device", "Measured", "Roofline", "device", "measure_device", "time_passes"]


class Costs(Protocol):
    """Seconds of the two kinds of passes."""

    def verify(self, B: int, n: int, L: int) -> float:
        """One pass of the target over n tokens of each of B rows with L tokens of text; n = 1 is a plain step."""
        ...

    def draft(self, B: int, depth: int, top_k: int, L: int) -> float:
        """All passes of the drafter for one block: `depth` of them, over `top_k` tokens of each row."""
        ...


@dataclass(frozen=True)
class Device:
    """What a device can do at best, as its maker says.

    Attributes:
        name: of the preset.
        bandwidth: of its memory, bytes per second.
        flops: dense half-precision operations per second.
        overhead: bytes that the framework takes before any tensor.
    """

    name: str
    bandwidth: float
    flops: float
    overhead: int = 512 * 2**20

    @property
    def ridge(self) -> float:
        """Operations per byte from which on passes are bound by arithmetic: about that many tokens at once."""
        return self.flops / self.bandwidth


DEVICES: Mapping[str, Device] = {
    name: Device(name, gigabytes * 1e9, tera * 1e12)
    for name, gigabytes, tera in (
        ("t4", 320, 65),
        ("l4", 300, 121),
        ("titan-rtx", 672, 130),
        ("rtx-3090", 936, 71),
        ("rtx-4090", 1008, 165),
        ("l40s", 864, 362),
        ("a100-40gb", 1555, 312),
        ("a100-80gb", 2039, 312),
        ("h100", 3350, 989),
        ("h200", 4800, 989),
        ("mi250", 3277, 362),
        ("mi300x", 5300, 1307),
    )
}
"""Peak figures of the data sheets. Real passes reach a part of them; ratios between passes are what a plan needs."""


def device(name: str) -> Device:
    """A preset by name, or `here` for this machine, measured.

    Raises:
        ConfigError: no such preset.
    """
    if name == "here":
        return measure_device()
    if name not in DEVICES:
        raise unknown("device", name, [*DEVICES, "here"])
    return DEVICES[name]


def measure_device(megabytes: int = 64, size: int = 768, repeats: int = 3) -> Device:
    """Bandwidth and operations per second of this machine, from a copy and a product of matrices; under a second.

    Args:
        megabytes: copied.
        size: of the matrices.
        repeats: the best of so many counts.
    """
    import torch

    cuda = torch.cuda.is_available()
    where, kind = ("cuda", torch.float16) if cuda else ("cpu", torch.float32)
    source = torch.ones(megabytes * 2**18, device=where)
    target = torch.empty_like(source)
    a, b = (torch.ones(size, size, device=where, dtype=kind) for _ in range(2))

    def best(work: Callable[[], object]) -> float:
        work()
        return min(_seconds(work, cuda) for _ in range(repeats))

    copied = 2 * source.numel() * source.element_size() / best(lambda: target.copy_(source))
    product = 2 * size**3 / best(lambda: a @ b)
    return Device("here", copied, product, DEVICES["t4"].overhead if cuda else 0)


def _seconds(work: Callable[[], object], cuda: bool) -> float:
    import torch

    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Roofline:
    """Passes last as long as their bytes or their operations, whichever is longer. For dense models.

    Attributes:
        model: what is read.
        device: that reads it.
        step: seconds on top of every pass: launching, the host's own work.
        guess: seconds of a drafter without weights, per block.
    """

    model: MemoryModel
    device: Device
    step: float = 0.0
    guess: float = 0.0

    def verify(self, B: int, n: int, L: int) -> float:
        """See `Costs`."""
        return self._pass(self.model.target, B, n, L, self.model.stored(L))

    def draft(self, B: int, depth: int, top_k: int, L: int) -> float:
        """See `Costs`."""
        if not depth:
            return 0.0
        if self.model.draft is None:
            return self.guess
        short = min(L, self.model.draft_context or L)
        return depth * self._pass(self.model.draft, B, top_k, short, short)

    def _pass(self, sizes: Sizes, B: int, n: int, length: int, stored: int) -> float:
        read = sizes.weights + B * sizes.kv(length, n, stored)
        parameters = sizes.weights / sizes.element
        attended = B * n * sizes.kv(length, 0, stored) / sizes.element
        operations = 2 * B * n * parameters + 2 * attended
        return self.step + max(read / self.device.bandwidth, operations / self.device.flops)


@dataclass(frozen=True)
class Measured:
    """Times that were measured at the batch and length of the plan; between two counts they are interpolated.

    Attributes:
        verify_seconds: tokens per row -> seconds of a pass of the target; must hold 1.
        draft_seconds: of one pass of the drafter.

    Raises:
        ConfigError: there is no time for one token, or a time is not above 0.
    """

    verify_seconds: Mapping[int, float]
    draft_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check the times."""
        if 1 not in self.verify_seconds or min(self.verify_seconds.values()) <= 0 or self.draft_seconds < 0:
            raise ConfigError(f"times {dict(self.verify_seconds)}", accepted="seconds above 0, that of 1 token too")

    def verify(self, B: int, n: int, L: int) -> float:
        """See `Costs`; beyond the last count, as the last two counts go on, and never less."""
        counts = sorted(self.verify_seconds)
        times = [self.verify_seconds[count] for count in counts]
        if len(counts) == 1 or n <= counts[0]:
            return times[0]
        right = min(max(1, bisect_left(counts, n)), len(counts) - 1)
        slope = (times[right] - times[right - 1]) / (counts[right] - counts[right - 1])
        reckoned = times[right - 1] + slope * (n - counts[right - 1])
        return reckoned if n <= counts[-1] else max(reckoned, times[-1])

    def draft(self, B: int, depth: int, top_k: int, L: int) -> float:
        """See `Costs`."""
        return depth * self.draft_seconds


def time_passes(
    work: Callable[[int], object],
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Median seconds of `work(count)` for every count, after one that is not counted; for `Measured`.

    Args:
        work: one pass over `count` tokens per row; it waits for its device itself.
        counts: tokens per row.
        repeats: passes per count.
        clock: seconds; `time.process_time` where other processes disturb.
    """

    def once(count: int) -> float:
        begin = clock()
        work(count)
        return clock() - begin

    times: dict[int, float] = {}
    for count in counts:
        work(count)
        times[count] = median(once(count) for _ in range(repeats))
    return times
