"""One provider per operation and kind of device, said once, forced by name, never changed in silence."""

import logging

import pytest
import torch

from remnant.errors import ConfigError, MissingExtra
from remnant_kernels import chosen, dispatch, get_op, list_ops


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(dispatch.FORCE, raising=False)
    dispatch.forget()
    yield
    dispatch.forget()


def test_the_issue_names_these_operations():
    assert {op.name for op in list_ops()} >= {
        "decode_attention", "compact", "compact_paged", "topk", "window_score", "page_summaries",
        "block_sparse_decode", "pruned_decode", "nearest", "fold", "attention", "retention_gate",
    }  # fmt: skip


def test_devices_without_triton_take_the_fast_path():
    assert chosen("topk", "cpu") == "fast"
    assert chosen("topk", "cuda") == "triton"


@pytest.mark.parametrize("which", ["naive", "fast", "triton"])
def test_a_provider_is_forced_by_name(which: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv(dispatch.FORCE, which)
    op = get_op("topk")
    kwargs = op.example(0)
    with caplog.at_level(logging.INFO, "remnant.kernels"):
        got = [op(**kwargs), op(**kwargs)]
    assert torch.equal(got[0].indices, op.naive(**kwargs).indices)
    said = [record.message for record in caplog.records]
    assert said == [f"topk on {kwargs['scores'].device.type}: {which} ({dispatch.FORCE}={which})"]


def test_an_unknown_provider_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(dispatch.FORCE, "cuda")
    with pytest.raises(ConfigError, match="naive"):
        chosen("topk")


def test_triton_is_not_replaced_where_it_was_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(dispatch.FORCE, "triton")
    monkeypatch.delenv(dispatch.INTERPRET, raising=False)
    with pytest.raises(ConfigError, match="TRITON_INTERPRET"):
        chosen("topk", "cpu")
    monkeypatch.setattr(dispatch, "TRITON_FOUND", False)
    dispatch.forget()
    with pytest.raises(MissingExtra, match="kernels"):
        chosen("topk", "cpu")


@pytest.mark.parametrize("what", ["gradient", "float64"])
def test_what_no_kernel_computes_runs_in_torch(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A kernel has no backward pass, and would hand back numbers from which no gradient comes."""
    monkeypatch.setattr(dispatch, "_choose", lambda name, device: ("triton", "as on a GPU"))
    op = get_op("retention_gate")
    kwargs = op.example(0)
    kwargs = {name: x.requires_grad_(name == "w1") if what == "gradient" else x.double() for name, x in kwargs.items()}
    with caplog.at_level(logging.INFO, "remnant.kernels"):
        out = op(**kwargs)
        with torch.no_grad():
            op(**kwargs)
    said = [record.message.partition(": ")[2] for record in caplog.records]
    assert said[0] == "fast (float64 or a gradient)"
    if what == "gradient":
        out.sum().backward()
        assert kwargs["w1"].grad is not None
        assert bool(kwargs["w1"].grad.abs().sum() > 0)
        assert said[1:] == ["triton (as on a GPU)"]
        assert not dispatch.wanted("attention", kwargs["w1"])
        with torch.no_grad():
            assert dispatch.wanted("attention", kwargs["w1"])


def test_a_forced_kernel_that_cannot_give_gradients_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(dispatch.FORCE, "triton")
    kwargs = get_op("retention_gate").example(0)
    kwargs["w2"].requires_grad_()
    with pytest.raises(ConfigError, match="retention_gate; accepted: tensors without gradients"):
        get_op("retention_gate")(**kwargs)


def test_unknown_operations_and_sizes_are_refused():
    with pytest.raises(ConfigError, match="topk"):
        get_op("top_k")
    with pytest.raises(ConfigError, match="small"):
        get_op("topk").example(size="huge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tensor"):
        get_op("topk")(width=3)
