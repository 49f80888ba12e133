"""What the contract tests share: every registered policy with small options, tiny models, and a naive attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")

from transformers import AttentionInterface, DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

from remnant.kv import Policy, get_policy, list_policies, policy_class  # noqa: E402
from remnant.kv.gates import GateShape, RetentionGate  # noqa: E402
from remnant_hf import RemnantCache  # noqa: E402

LAYERS, HEADS, KV_HEADS, SIZE, VOCAB = 4, 8, 2, 16, 64
BUDGET = 24

SMALL = {"window": 8, "slack": 4, "buffer": 4, "future": 32, "gates": "uniform", "recent": 4, "page": 4}
"""Options that make any policy fit tiny budgets; those that a policy does not have are left out."""

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "snapkv": [{"refresh": 4, "sinks": 2}],
    "adakv": [{"refresh": 4, "floor": 0.5}],
    "h2o": [{"normalise": True, "sinks": 2}],
    "knorm": [{"slack": 0}],
    "lazyeviction": [{"formula": "paper", "window": 3}],
    "trimkv": [{"gates": "random"}, {"gates": "random", "share": "head"}],
    "epicache": [{"allocation": "uniform"}],
    "d2o": [{"allocation": "variance"}, {"merge_keys": True}],
    "think": [{"evictor": "none", "pairs": True}],
    "kinetics": [{"dense_layers": 0}, {"summary": "mean", "local_pages": 1}],
}


@dataclass(frozen=True)
class Case:
    """A policy with options for tiny models."""

    name: str
    extra: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.extra.items())])

    @property
    def options(self) -> dict[str, Any]:
        own = {f.name for f in fields(policy_class(self.name)) if f.init}
        if self.name != "think":
            own -= {"recent"}
        found = {**{k: v for k, v in SMALL.items() if k in own}, **self.extra}
        return {**found, "gates": _gates()} if found.get("gates") == "random" else found

    @property
    def policy(self) -> Policy:
        return get_policy(self.name, **self.options)

    @property
    def keeps_values(self) -> bool:
        """Whether stored keys and values are those of the text, so that a mask describes everything."""
        return self.name != "d2o" and self.policy.layout != "channels"

    @property
    def reads_all(self) -> bool:
        """Whether a decoded token reads whatever is stored; what reads pages has an oracle in tests/plugins."""
        return self.policy.reads is None

    @property
    def at_prefill(self) -> bool:
        """Whether the end of a prompt brings the cache down to the budget."""
        return any(t.kind == "prefill_end" for t in self.policy.when) and self.extra.get("evictor") != "none"

    @property
    def deals_in_rows(self) -> bool:
        """Whether a row's budget depends on that row alone: two policies share budgets over a batch by design."""
        return self.name != "pyramidkv" and self.extra.get("allocation") != "variance"


def _gates() -> Any:
    gate = RetentionGate(GateShape(LAYERS, KV_HEADS, SIZE, SIZE, 8), bias=3.0, seed=1)
    with torch.no_grad():
        gate.w2.mul_(100)
    return gate.export()


CASES = [Case(n, extra) for n in list_policies() for extra in [{}, *VARIANTS.get(n, [])]]
SUBSETS: dict[str, Callable[[Case], bool]] = {
    "case": lambda c: True,
    "pure_case": lambda c: c.keeps_values and c.reads_all,
    "changing_case": lambda c: not c.keeps_values and c.reads_all,
    "row_case": lambda c: c.deals_in_rows,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, wanted in SUBSETS.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, [c for c in CASES if wanted(c)], ids=str)


class Naive:
    """Attention by plain matrix products, over a history that a test may hide or replace.

    `hidden[layer]` `[B, Hk, S]` marks old slots that nobody may read, `stored[layer]` `(k, v)` takes the place of all
    old keys and values; `probabilities[layer]` `[B, H, n, S]` is what the last call gave.
    """

    def __init__(self) -> None:
        self.hidden: dict[int, Any] = {}
        self.stored: dict[int, tuple[Any, Any]] = {}
        self.probabilities: dict[int, Any] = {}

    def __call__(self, module: Any, q: Any, k: Any, v: Any, mask: Any, **kw: Any) -> tuple[Any, None]:
        layer, n = module.layer_idx, q.shape[2]
        if layer in self.stored:
            old_k, old_v = self.stored[layer]
            k, v = torch.cat([old_k, k[:, :, -n:]], 2), torch.cat([old_v, v[:, :, -n:]], 2)
        group = q.shape[1] // k.shape[1]
        logits = q @ k.repeat_interleave(group, 1).transpose(2, 3) * kw["scaling"]
        blocked = torch.ones(n, k.shape[2], dtype=torch.bool).triu(k.shape[2] - n + 1)[None, None]
        if layer in self.hidden:
            old = self.hidden[layer].repeat_interleave(group, 1)
            new = torch.zeros(*old.shape[:2], n, dtype=torch.bool)
            blocked = blocked | torch.cat([old, new], 2)[:, :, None]
        p = logits.masked_fill(blocked, float("-inf")).softmax(-1)
        self.probabilities[layer] = p
        return (p @ v.repeat_interleave(group, 1)).transpose(1, 2), None


class Lab:
    """Models and the few steps that most tests take."""

    budget = BUDGET

    def __init__(self, model: Any, naive_model: Any, naive: Naive) -> None:
        self.model, self.naive_model, self.naive = model, naive_model, naive

    def ids(self, length: int, rows: int = 1, seed: int = 0) -> Any:
        return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))

    def cache(self, case: Case, budget: int = BUDGET, **more: Any) -> RemnantCache:
        return RemnantCache(self.model.config, case.policy, budget=budget, **more)

    @torch.no_grad()
    def feed(self, cache: Any, ids: Any, mask: Any = None, model: Any = None) -> Any:
        """Logits `[B, n, V]` of new tokens; positions as `generate` would pass them."""
        more = {}
        if mask is not None:
            position = (mask.long().cumsum(-1) - 1).clamp(min=0)
            more = {"attention_mask": mask, "position_ids": position[:, -ids.shape[1] :]}
        return (model or self.model)(ids, past_key_values=cache, use_cache=True, **more).logits

    def kept(self, cache: RemnantCache) -> list[list[list[list[int]]]]:
        """Kept positions by layer, row and head, without the fill behind shorter heads."""
        layers = [cache.kept_positions(layer.index).tolist() for layer in cache.governed]
        return [[[[p for p in head if p >= 0] for head in row] for row in layer] for layer in layers]

    def hide(self, kept: list[list[list[list[int]]]], seen: int) -> None:
        """Let the naive attention see only these positions of the past."""
        self.naive.hidden, self.naive.stored = {}, {}
        for layer, rows in enumerate(kept):
            hidden = torch.ones(len(rows), len(rows[0]), seen, dtype=torch.bool)
            for i, row in enumerate(rows):
                for j, head in enumerate(row):
                    hidden[i, j, head] = False
            self.naive.hidden[layer] = hidden

    def show_stored(self, cache: RemnantCache) -> None:
        """Let the naive attention read what the cache really holds, one dense block per head."""
        self.naive.hidden, self.naive.stored = {}, {}
        for layer in cache.governed:
            dense = layer.store.dense()
            self.naive.stored[layer.index] = (dense.k.clone(), dense.v.clone())
            self.naive.hidden[layer.index] = torch.zeros(dense.k.shape[:3], dtype=torch.bool)

    @contextmanager
    def plain(self) -> Iterator[Naive]:
        """The naive attention with nothing hidden; what a test set is forgotten afterwards."""
        self.naive.hidden, self.naive.stored, self.naive.probabilities = {}, {}, {}
        yield self.naive
        self.naive.hidden, self.naive.stored, self.naive.probabilities = {}, {}, {}


@pytest.fixture(scope="session")
def lab() -> Lab:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=SIZE,
        max_position_embeddings=4096,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    naive = Naive()
    AttentionInterface.register("contract_naive", naive)
    other = copy.deepcopy(config)
    other._attn_implementation = "contract_naive"
    naive_model = LlamaForCausalLM(other).eval()
    naive_model.load_state_dict(model.state_dict())
    return Lab(model, naive_model, naive)


@pytest.fixture(scope="session")
def dense_logits(lab: Lab) -> tuple[Any, Any, Any]:
    """Ids, and logits of the stock cache: prompt of 48 at once, then 64 single tokens."""
    ids, cache = lab.ids(112), DynamicCache(config=lab.model.config)
    first = lab.feed(cache, ids[:, :48])
    steps = [lab.feed(cache, ids[:, i : i + 1]) for i in range(48, 112)]
    return ids, first, torch.cat(steps, 1)
