"""A small harness of its own: times, the roofline of the device, and facts of the run. Needs torch alone."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["ROOT", "Clock", "Roofline", "facts", "roofline"]

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    """Times a call on one device, in microseconds: p20, p50 and p80.

    On a GPU by events, with caches flushed before each call; on a CPU by process time.

    Args:
        device: `cuda` or `cpu`.
        rounds: calls that count.
        seconds: no longer than this for one call's rounds.
    """

    def __init__(self, device: str, rounds: int, seconds: float = 2.0) -> None:
        """See the class."""
        self.device, self.rounds, self.seconds = device, rounds, seconds
        self._flush = torch.empty(2**28, dtype=torch.int8, device=device) if device == "cuda" else None

    def __call__(self, act: Callable[[], Any]) -> tuple[float, float, float]:
        """(p20, p50, p80) of a call, after warming up."""
        for _ in range(1 if self.device == "cpu" else 10):
            act()
        times: list[float] = []
        end = time.perf_counter() + self.seconds
        while len(times) < self.rounds and (len(times) < 3 or time.perf_counter() < end):
            times.append(self._once(act))
        times.sort()
        return tuple(round(times[int(share * (len(times) - 1))], 2) for share in (0.2, 0.5, 0.8))  # type: ignore[return-value]

    def _once(self, act: Callable[[], Any]) -> float:
        if self._flush is None:
            begin = time.process_time()
            act()
            return 1e6 * (time.process_time() - begin)
        self._flush.zero_()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        act()
        last.record()
        torch.cuda.synchronize()
        return 1000 * first.elapsed_time(last)


class Roofline:
    """What the device can do, measured in this run: bytes per second of a copy, operations per second of a product."""

    def __init__(self, bandwidth: float, rate: float) -> None:
        """See the class; both per second."""
        self.bandwidth, self.rate = bandwidth, rate

    def floor(self, moved: int, flops: int) -> float:
        """The least time for so many bytes and operations, in microseconds."""
        return 1e6 * max(moved / self.bandwidth, flops / self.rate)


def roofline(clock: Clock, dtype: torch.dtype) -> Roofline:
    """Copy a large tensor, multiply large matrices; bytes read and written both count."""
    size, side = (2**30, 8192) if clock.device == "cuda" else (2**26, 1024)
    a = torch.empty(size, dtype=torch.int8, device=clock.device)
    b = torch.empty_like(a)
    copied = clock(lambda: b.copy_(a))[1]
    x = torch.randn(side, side, device=clock.device).to(dtype)
    product = clock(lambda: x @ x)[1]
    return Roofline(2 * size / copied * 1e6, 2 * side**3 / product * 1e6)


def facts(arguments: list[str], device: str) -> dict[str, Any]:
    """What a row says about its run."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = None
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {platform.machine()}, {os.cpu_count()} cores"
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": version,
        "python": platform.python_version(),
        "git": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "kernels", "benchmarks")),
        "command": " ".join(["python benchmarks/run.py kernels", *arguments]),
    }


def importable() -> None:
    """Let a checkout that was never installed find its own packages, as on a machine with torch alone."""
    for folder in ("core", "kernels", "plugins/hf_ext"):
        path = str(ROOT / folder)
        if path not in sys.path:
            sys.path.insert(0, path)
