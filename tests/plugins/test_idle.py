"""A token that can change nothing costs nothing: below its budget a cache looks at no slot and asks no policy."""

from typing import Any

import pytest
import torch

from remnant.errors import UnsupportedPolicy
from remnant.kv import Policy
from remnant_hf.layer import Ledger, RemnantLayer
from remnant_hf.store import SlotStore

QUIET = ["snapkv", "window", "streaming", "knorm", "keydiff", "random", "full"]


@pytest.mark.parametrize("policy", QUIET)
def test_below_the_budget_nothing_is_shown_and_nobody_is_asked(lab: Any, policy: str, monkeypatch: pytest.MonkeyPatch):
    model = lab.model("llama")
    cache, stock = lab.cache(model, policy, 1 << 20), lab.full(model)
    ids = lab.ids(40)
    with torch.no_grad():
        model(ids, past_key_values=cache)
        model(ids, past_key_values=stock)

        def never(*_: Any, **__: Any) -> Any:
            raise AssertionError("looked at a slot below the budget")

        monkeypatch.setattr(SlotStore, "dense", never)
        monkeypatch.setattr(RemnantLayer, "_after", never)
        monkeypatch.setattr(Policy, "due", never) if "due" not in vars(type(cache.policy)) else None
        for step in range(3):
            x = lab.ids(1, seed=step)
            got = model(x, past_key_values=cache).logits
            assert torch.equal(got, model(x, past_key_values=stock).logits)
    assert {layer.decoded for layer in cache.governed} == {3}
    assert cache.stats().evicted == 0


@pytest.mark.parametrize("policy", [*QUIET[:-1], "tova", "h2o", "lazyeviction"])
def test_the_token_that_reaches_the_budget_is_noticed(lab: Any, policy: str):
    """Idle steps move the clocks as others do, so that a decision comes when it would have come."""
    model, more = lab.model("llama"), {"snapkv": {"window": 8, "refresh": 7}}.get(policy, {})
    cache = lab.cache(model, policy, 60, **more)
    with torch.no_grad():
        model(lab.ids(50), past_key_values=cache)
        for step in range(60):
            model(lab.ids(1, seed=step), past_key_values=cache)
            layer = cache.governed[0]
            late = layer.decoded % max(cache.policy.slack, 1) if policy in ("snapkv", "lazyeviction") else None
            room = cache.policy.slack if late is None else late
            assert layer.store.stored <= 60 + room
    assert cache.stats().evicted > 0


def test_an_idle_step_still_notices_that_attention_went_missing(lab: Any):
    model, cache = lab.model("llama"), lab.cache(lab.model("llama"), "snapkv", 1 << 20)
    with torch.no_grad():
        model(lab.ids(40), past_key_values=cache)
        model(lab.ids(1), past_key_values=cache)
    k = torch.zeros(1, 2, 1, 16)
    cache.update(k, k, 0)
    with pytest.raises(UnsupportedPolicy, match="layer 0"):
        cache.update(k, k, 1)


def test_the_ledger_adds_up_and_remembers_the_most():
    ledger = Ledger()
    for order, size in [(0, 10), (1, 20), (0, 40), (1, 5), (0, 0), (2, 7)]:
        ledger.note(order, size)
    assert ledger.total == sum(ledger.held.values()) == 12
    assert ledger.peak == 60


@pytest.mark.parametrize(("policy", "more"), [("knorm", {"slack": 16}), ("keydiff", {"slack": 16})])
def test_between_two_decisions_nobody_looks_either(
    lab: Any, policy: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """Above the budget, but before the slack is used up."""
    model, cache, looks = lab.model("llama"), lab.cache(lab.model("llama"), policy, 24, **more), []
    dense = SlotStore.dense
    monkeypatch.setattr(SlotStore, "dense", lambda self: (looks.append(self.n), dense(self))[1])
    with torch.no_grad():
        model(lab.ids(40), past_key_values=cache)
        looks.clear()
        for step in range(32):
            model(lab.ids(1, seed=step), past_key_values=cache)
    assert looks == [40] * 2 * len(cache.governed)
