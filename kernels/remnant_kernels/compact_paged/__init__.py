"""K3, paged: keep some slots of every head of a sequence whose slots lie in pages."""

from remnant_kernels.compact_paged.example import bytes_moved, example, flops, tolerance
from remnant_kernels.compact_paged.fast import compact_paged as fast
from remnant_kernels.compact_paged.naive import naive_compact_paged
from remnant_kernels.op import Op

__all__ = ["OP"]

OP = Op(
    "compact_paged",
    naive_compact_paged,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.6,
    source="kernels.md K3, paged; towards the end as remnant_vllm packs survivors",
)
