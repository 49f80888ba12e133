"""K6: a decoded token reads the pages that matter to it, and nothing is evicted."""

from remnant_kernels.block_sparse_decode.example import bytes_moved, example, flops, tolerance
from remnant_kernels.block_sparse_decode.fast import block_sparse_decode as fast
from remnant_kernels.block_sparse_decode.naive import Sparse, naive_block_sparse_decode
from remnant_kernels.op import Op

__all__ = ["OP", "Sparse"]

OP = Op(
    "block_sparse_decode",
    naive_block_sparse_decode,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.7,
    source="kernels.md K6; Kinetics (block top-k) and Quest (bounds)",
)
