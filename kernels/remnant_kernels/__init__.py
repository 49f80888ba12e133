"""The operations under the policies, each three times: plainly in torch, fast in torch, and as a Triton kernel.

One folder per operation: `naive.py` is the truth, `fast.py` what a CPU runs, `triton.py` what a GPU runs, all with one
signature. `dispatch` picks one, once, and says so. Every operation can be fuzzed and timed without knowing it:

    for op in list_ops():
        kwargs = op.example(seed=0, size="odd")
        want, got = op.naive(**kwargs), op(**kwargs)
"""

from __future__ import annotations

from remnant_kernels.dispatch import chosen, run
from remnant_kernels.op import Op, get_op, list_ops, load

__all__ = ["Op", "chosen", "get_op", "list_ops", "run"]

load(__path__)
