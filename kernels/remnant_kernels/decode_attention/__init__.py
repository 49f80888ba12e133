"""K2: one query per head over the stored slots, and what it gave each slot, in one go."""

from remnant_kernels.decode_attention.example import bytes_moved, example, flops, tolerance
from remnant_kernels.decode_attention.fast import decode_attention as fast
from remnant_kernels.decode_attention.naive import Decoded, naive_decode_attention
from remnant_kernels.op import Op

__all__ = ["OP", "Decoded"]

OP = Op(
    "decode_attention",
    naive_decode_attention,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.8,
    source="kernels.md K2; split-KV decoding after Dao et al. 2023",
)
