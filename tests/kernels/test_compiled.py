"""What `torch.compile` makes of the dispatcher: one graph, no warning, and no second compilation for a choice."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from remnant_kernels import dispatch, get_op


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch):
    """Nothing compiled, nothing chosen."""
    monkeypatch.delenv(dispatch.FORCE, raising=False)
    dispatch.forget()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    dispatch.forget()


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that Dynamo warns of, also what it has said before in this process."""
    said: list[str] = []
    monkeypatch.setattr(torch._dynamo.utils, "warn_once", lambda message, *_, **__: said.append(str(message)))
    return said


def counting(graphs: list[Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled whole; every compilation leaves its graph in the list."""

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return torch.compile(function, backend=backend, fullgraph=True)


@pytest.mark.parametrize("name", ["retention_gate", "window_score", "nearest", "fold"])
def test_operations_are_chosen_within_a_graph(name: str, warned: list[str]):
    op, graphs = get_op(name), []
    kwargs = op.example(0)
    call = counting(graphs, lambda given: get_op(name)(**given))
    for got, want in zip(pair(call(kwargs)), pair(op.fast(**kwargs)), strict=True):
        torch.testing.assert_close(got, want)
    call(kwargs)
    assert warned == []
    assert len(graphs) == 1


def test_asking_for_a_kernel_within_a_graph_warns_of_nothing(warned: list[str]):
    graphs: list[Any] = []
    call = counting(graphs, lambda x: x * 2 if dispatch.wanted("decode_attention", x) else x + 1)
    assert torch.equal(call(torch.ones(3)), torch.full((3,), 2.0))
    assert warned == []


def test_a_choice_made_before_is_compiled_once():
    op, graphs = get_op("retention_gate"), []
    kwargs = op.example(0)
    op(**kwargs)  # a prompt runs eagerly, as a rule
    call = counting(graphs, lambda given: get_op("retention_gate")(**given))
    call(kwargs)
    for other in ("topk", "retention_gate"):
        get_op(other)(**get_op(other).example(1))
        call(kwargs)
    assert len(graphs) == 1


def pair(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def test_dynamo_is_what_was_measured(warned: list[str]):
    """The warning that the dispatcher avoids still exists: without it these tests would pass for nothing."""
    from functools import cache

    cached = cache(lambda name: len(name))
    counting([], lambda x: x + cached("three"))(torch.ones(2))
    assert any("lru_cache" in message for message in warned)


def test_policies_need_no_triton():
    """`remnant.kv` works where only torch is installed."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from remnant.kv import KVView
from remnant.kv.gates import GateShape, RetentionGate
from remnant.kv.merge import nearest
from remnant.kv.score import group_columns
from remnant_kernels import chosen
k, at = torch.randn(1, 2, 9, 8), torch.arange(9).expand(1, 2, 9)
view = KVView(k, k, at, 9, queries=torch.randn(1, 4, 3, 8))
assert group_columns(view, "mean", kernel=3, pooling="avg").shape == (1, 2, 9)
assert nearest(k, at[..., :4], at[..., 4:])[1].shape == (1, 2, 4)
assert RetentionGate(GateShape(1, 2, 8, 8, 4)).export().log_beta(0, k, k).shape == (1, 2, 9)
assert (chosen("fold", "cpu"), chosen("fold", "cuda")) == ("fast", "fast")
assert not [name for name in sys.modules if name.endswith(".triton") and name.startswith("remnant")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
