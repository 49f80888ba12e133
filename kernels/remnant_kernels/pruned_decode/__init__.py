"""K5: decoding over keys that have lost the channels which queries do not read."""

from remnant_kernels.op import Op
from remnant_kernels.pruned_decode.example import bytes_moved, example, flops, tolerance
from remnant_kernels.pruned_decode.fast import pruned_decode as fast
from remnant_kernels.pruned_decode.naive import Pruned, naive_pruned_decode

__all__ = ["OP", "Pruned"]

OP = Op(
    "pruned_decode",
    naive_pruned_decode,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.8,
    source="kernels.md K5; ThinK, Xu et al. 2024, arXiv 2407.21018",
)
