"""What generation costs in arithmetic and memory traffic, and what a budget buys: no torch, no engine.

Example:
    eflops(Shape.uniform("m", parameters=8e9, layers=32, heads=32, kv_heads=8, dim=128), 512, 8192, 4, Dense())
"""

from __future__ import annotations

from remnant.kinetics.accuracy import Measurement, measured, read_measurements
from remnant.kinetics.choose import Option, Purse, afford, best, efficient, exchange, frontier, longest, most_trials
from remnant.kinetics.cost import REFERENCE_INTENSITY, Cost, eflops, held_bytes, read_tokens
from remnant.kinetics.reading import Block, Dense, Evict, Reading, TopK, parse_reading
from remnant.kinetics.samples import coverage
from remnant.kinetics.shape import Group, Shape, read_shape

__all__ = [
    "REFERENCE_INTENSITY",
    "Block",
    "Cost",
    "Dense",
    "Evict",
    "Group",
    "Measurement",
    "Option",
    "Purse",
    "Reading",
    "Shape",
    "TopK",
    "afford",
    "best",
    "coverage",
    "efficient",
    "eflops",
    "exchange",
    "frontier",
    "held_bytes",
    "longest",
    "measured",
    "most_trials",
    "parse_reading",
    "read_measurements",
    "read_shape",
    "read_tokens",
]
