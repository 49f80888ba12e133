"""K10: the highest scores of every head, as slots in ascending order."""

from remnant_kernels.op import Op
from remnant_kernels.topk.example import bytes_moved, example, flops, tolerance
from remnant_kernels.topk.fast import topk as fast
from remnant_kernels.topk.naive import Chosen, naive_topk

__all__ = ["OP", "Chosen"]

OP = Op("topk", naive_topk, fast, example, tolerance, bytes_moved, flops, efficiency=0.1, source="kernels.md K10")
