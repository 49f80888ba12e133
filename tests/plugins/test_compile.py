"""`torch.compile` of a decode step: one graph, no break, the same numbers."""

from typing import Any

import pytest
import torch

POLICIES = ("snapkv", "streaming", "window", "h2o", "tova", "full")


@pytest.fixture(scope="module")
def small(lab: Any) -> Any:
    return lab.build(lab.config("llama", num_hidden_layers=2))


def filled(lab: Any, model: Any, policy: str) -> Any:
    cache = lab.cache(model, policy, None if policy == "full" else 24)
    with torch.no_grad():
        model(lab.ids(40), past_key_values=cache)
    return cache


@pytest.mark.parametrize("policy", POLICIES)
def test_a_decode_step_has_no_graph_break(lab: Any, small: Any, policy: str):
    torch._dynamo.reset()
    cache = filled(lab, small, policy)
    with torch.no_grad():
        found = torch._dynamo.explain(lambda x, c: small(x, past_key_values=c).logits)(lab.ids(1, seed=5), cache)
    assert found.graph_break_count == 0, [str(b.reason) for b in found.break_reasons]
    assert found.graph_count == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_compiled_step_equals_an_eager_one(lab: Any, small: Any, policy: str):
    torch._dynamo.reset()
    compiled, eager = (filled(lab, small, policy) for _ in range(2))
    step = torch.compile(lambda x, c: small(x, past_key_values=c).logits, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for i in range(4):
            x = lab.ids(1, seed=20 + i)
            a, b = step(x, compiled), small(x, past_key_values=eager).logits
            assert (a - b).abs().max() < 1e-5, f"step {i}"
    assert compiled.get_seq_length() == eager.get_seq_length() == 44
    for layer in range(2):
        assert torch.equal(compiled.kept_positions(layer), eager.kept_positions(layer))
    assert compiled.stats().evicted == eager.stats().evicted
