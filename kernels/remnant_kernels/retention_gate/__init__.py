"""K9: how long each token will matter, from its key and value."""

from remnant_kernels.op import Op
from remnant_kernels.retention_gate.example import bytes_moved, example, flops, tolerance
from remnant_kernels.retention_gate.fast import retention_gate as fast
from remnant_kernels.retention_gate.naive import naive_retention_gate

__all__ = ["OP"]

OP = Op(
    "retention_gate",
    naive_retention_gate,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.4,
    source="kernels.md K9; TRIM-KV (Bui et al. 2025)",
)
