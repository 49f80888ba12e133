"""K4, first part: for every evicted key, the kept key that it resembles most."""

from remnant_kernels.nearest.example import bytes_moved, example, flops, tolerance
from remnant_kernels.nearest.fast import nearest as fast
from remnant_kernels.nearest.naive import Nearest, naive_nearest
from remnant_kernels.op import Op

__all__ = ["OP", "Nearest"]

OP = Op(
    "nearest",
    naive_nearest,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.55,
    source="kernels.md K4; D2O, Wan et al. 2024, arXiv 2406.13035",
)
