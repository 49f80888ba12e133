"""Compiles every kernel for a GPU that is not here: launches are caught, their arguments typed, and PTX is made.

Usage: compile_child.py CAPABILITY [OP ...]; prints one JSON line per kernel and variant. Started by test_compiles.py.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from remnant_kernels import get_op

TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64",
    torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip


SHARED = 227 * 1024
"""Bytes of shared memory that a program of the target may take."""


def typed(value: Any) -> str:
    """How Triton names the type of an argument."""
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compiling(capability: int, seen: dict[str, dict[str, Any]]) -> Any:
    """A stand-in for `JITFunction.run` that compiles instead of launching."""
    target = GPUTarget("cuda", capability, 32)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
        names = [param.name for param in self.params]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        fixed = {p.name: given[p.name] for p in self.params if p.is_constexpr or given[p.name] is None}
        signature = {name: "constexpr" if name in fixed else typed(given[name]) for name in names}
        key = json.dumps([self.fn.__name__, signature, {name: str(value) for name, value in fixed.items()}, options])
        if key not in seen:
            source = ASTSource(
                fn=self, signature=signature, constexprs={(names.index(n),): v for n, v in fixed.items()}
            )
            made = triton.compile(source, target=target, options=options)
            assert made.metadata.shared <= SHARED, (self.fn.__name__, made.metadata.shared)
            seen[key] = {"kernel": self.fn.__name__, "ptx": len(made.asm["ptx"]), "shared": made.metadata.shared}

    return run


def main() -> None:
    """The examples of each operation that differ in what is compiled."""
    seen: dict[str, dict[str, Any]] = {}
    JITFunction.run = compiling(int(sys.argv[1]), seen)  # type: ignore[method-assign]
    for name in sys.argv[2:]:
        op = get_op(name)
        op.triton(**op.example(0, "small", "cpu", torch.float32))
        for seed in range(4):
            op.triton(**op.example(seed, "odd", "cpu", torch.bfloat16))
    for found in seen.values():
        print(json.dumps(found))


if __name__ == "__main__":
    main()
