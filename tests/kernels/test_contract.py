"""Every operation: the kernel and the fast path against the naive one, on examples that each operation brings."""

from typing import Any

import pytest
import torch

from remnant_kernels import Op

SIZES = ["small", "odd"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("provider", ["fast", "triton"])
def test_float32_equals_the_naive_one_in_float64(
    op: Op, provider: str, size: Any, seed: int, device: str, copied: Any, in_double: Any, close: Any
):
    kwargs = op.example(seed, size, device, torch.float32)
    want = op.naive(**in_double(copied(kwargs)))
    close(op, getattr(op, provider)(**copied(kwargs)), want, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("provider", ["fast", "triton"])
def test_half_precision_stays_within_its_tolerance(
    op: Op, provider: str, dtype: torch.dtype, device: str, copied: Any, in_double: Any, close: Any
):
    kwargs = op.example(2, "small", device, dtype)
    want = op.naive(**in_double(copied(kwargs)))
    close(op, getattr(op, provider)(**copied(kwargs)), want, dtype)


def test_examples_are_the_same_for_a_seed_and_others_for_another(op: Op):
    def flat(seed: int) -> list[torch.Tensor]:
        return [value for value in op.example(seed).values() if isinstance(value, torch.Tensor)]

    assert all(torch.equal(a, b) for a, b in zip(flat(3), flat(3), strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(flat(3), flat(4), strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_bytes_and_operations_are_counted(op: Op, size: Any):
    kwargs = op.example(0, size)
    assert op.bytes(kwargs) > 0
    assert op.flops(kwargs) >= 0
    assert 0 < op.efficiency <= 1
    assert op.source
