"""K3, rectangular: keep some slots of every head, side state along."""

from remnant_kernels.compact.example import bytes_moved, example, flops, tolerance
from remnant_kernels.compact.fast import compact as fast
from remnant_kernels.compact.naive import naive_compact
from remnant_kernels.op import Op

__all__ = ["OP"]

OP = Op("compact", naive_compact, fast, example, tolerance, bytes_moved, flops, efficiency=0.75, source="kernels.md K3")
