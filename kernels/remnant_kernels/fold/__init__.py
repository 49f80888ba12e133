"""K4, second part: evicted values live on in kept ones."""

from remnant_kernels.fold.example import bytes_moved, example, flops, tolerance
from remnant_kernels.fold.fast import fold as fast
from remnant_kernels.fold.naive import naive_fold
from remnant_kernels.op import Op

__all__ = ["OP"]

OP = Op(
    "fold",
    naive_fold,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.5,
    source="kernels.md K4; D2O, Wan et al. 2024, arXiv 2406.13035",
)
