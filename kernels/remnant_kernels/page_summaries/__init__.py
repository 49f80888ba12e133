"""K6, first part: what stands for a page of keys when pages are chosen."""

from remnant_kernels.op import Op
from remnant_kernels.page_summaries.example import bytes_moved, example, flops, tolerance
from remnant_kernels.page_summaries.fast import page_summaries as fast
from remnant_kernels.page_summaries.naive import Summaries, naive_page_summaries

__all__ = ["OP", "Summaries"]

OP = Op(
    "page_summaries",
    naive_page_summaries,
    fast,
    example,
    tolerance,
    bytes_moved,
    flops,
    efficiency=0.7,
    source="kernels.md K6; Kinetics (mean) and Quest (bounds)",
)
