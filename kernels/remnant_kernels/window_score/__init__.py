"""K1: what each slot received from the newest queries, pooled over neighbours."""

from remnant_kernels.op import Op
from remnant_kernels.window_score.example import bytes_moved, example, flops, tolerance
from remnant_kernels.window_score.fast import window_score as fast
from remnant_kernels.window_score.naive import naive_window_score

__all__ = ["OP"]

OP = Op(
    "window_score",
    naive_window_score,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.6,
    source="kernels.md K1; SnapKV, Li et al. 2024, arXiv 2404.14469",
)
