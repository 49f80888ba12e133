"""Kernels run on a GPU where there is one, else on the CPU through Triton's interpreter; see tests/conftest.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from remnant_kernels import Op, list_ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every operation, by name."""
    if "op" in metafunc.fixturenames:
        metafunc.parametrize("op", list_ops(), ids=lambda op: op.name)


@pytest.fixture
def device() -> str:
    """Where kernels run here."""
    return DEVICE


@pytest.fixture(autouse=True)
def poisoned_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `torch.empty` that a provider asks for is full of NaN or 99: what is not written cannot pass."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoning(getattr(torch, name)))


def _poisoning(real: Any) -> Any:
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = real(*args, **kwargs)
        return (
            out.fill_(float("nan") if out.is_floating_point() else 99) if out.dtype != torch.bool else out.fill_(True)
        )

    return made


@pytest.fixture
def in_double() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The same arguments with floating-point tensors in float64."""

    def widened(kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: value.double() if _floating(value) else value for name, value in kwargs.items()}

    return widened


@pytest.fixture
def copied() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Arguments that may be written to, strides kept."""

    def copies(kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: _copied(value) for name, value in kwargs.items()}

    return copies


@pytest.fixture
def close() -> Callable[..., None]:
    """Assert that two results agree within the operation's tolerance; infinities and NaN must be in the same places."""

    def check(op: Op, got: Any, want: Any, dtype: torch.dtype) -> None:
        absolute, relative = op.tolerance(dtype)
        mine, truth = _tensors(got), _tensors(want)
        assert len(mine) == len(truth)
        for a, b in zip(mine, truth, strict=True):
            assert a.shape == b.shape
            if a.is_floating_point():
                a, b = a.double().cpu(), b.double().cpu()
                torch.testing.assert_close(a, b, atol=absolute, rtol=relative, equal_nan=True)
            else:
                assert torch.equal(a.cpu(), b.cpu())

    return check


def _floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _copied(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_copied(item) for item in value)
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return made.copy_(value)


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [part for part in result if isinstance(part, torch.Tensor)]
