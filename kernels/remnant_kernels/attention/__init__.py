"""K7: exact attention over tiles, dense or over given blocks; no S x S matrix anywhere."""

from remnant_kernels.attention.example import bytes_moved, example, flops, tolerance
from remnant_kernels.attention.fast import attention as fast
from remnant_kernels.attention.naive import Attended, naive_attention
from remnant_kernels.op import Op

__all__ = ["OP", "Attended"]

OP = Op(
    "attention",
    naive_attention,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.5,
    source="attention.md 5, kernels.md K7; FlashAttention, Dao et al. 2022 and 2023",
)
