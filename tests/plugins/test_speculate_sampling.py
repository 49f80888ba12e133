"""Sampling with drafts is sampling from the target: exact distributions, through the stock loop and through ours.

The target is a table: the next token depends on the newest one only, so every token of a long text is a draw whose
distribution is known, and a token after a token after a token tests the joint distribution of three.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import remnant_hf
from remnant.speculative import Draft

V = 6
DRAWS = [20_000, pytest.param(100_000, marks=pytest.mark.slow)]
WORST = 1e-4
"""A p-value below this fails; seeds are fixed, so a pass is a pass."""


class TableModel(PreTrainedModel, GenerationMixin):
    """Logits `table[newest token]`, behind an attention that is stored and read like any other's."""

    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(self, config: Any, table: Any) -> None:
        super().__init__(config)
        self.table = torch.nn.Parameter(table, requires_grad=False)
        self.layer_idx, self.is_causal, self.num_key_value_groups = 0, True, 1

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool = True,
        logits_to_keep: Any = 0,
        **kwargs: Any,
    ) -> Any:
        state = self.table.new_ones(*input_ids.shape, 1)[:, None].contiguous()
        key, value = past_key_values.update(state, state, 0)
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", sdpa_attention_forward)
        attend(self, state, key, value, None, scaling=1.0)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits: Any = self.table[input_ids[:, keep]]
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


def _table(seed: int) -> Any:
    """Logits of the target (0), and of drafters that are half right."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
    return table + torch.randn(V, V, generator=torch.Generator().manual_seed(seed)) if seed else table


def _model(seed: int) -> Any:
    config = LlamaConfig(
        vocab_size=V, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=1, eos_token_id=None, pad_token_id=None, bos_token_id=None,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return TableModel(config, _table(seed)).eval()


class Known:
    """Names or draws its drafts from a table of its own."""

    name: ClassVar[str] = "known"

    def __init__(self, table: Any, drawn: bool) -> None:
        self.table, self.drawn, self.vocab_size = table, drawn, V
        self.last: list[int] = []

    def reset(self, prompts: Sequence[Any]) -> None:
        self.last = [int(prompt[-1]) for prompt in prompts]

    def propose(self, limits: Sequence[int], sampler: Any = None) -> list[Draft]:
        return [self._row(last, limit, sampler) for last, limit in zip(self.last, limits, strict=True)]

    def _row(self, last: int, limit: int, sampler: Any) -> Draft:
        ids, q = [], []
        for _ in range(limit):
            probs = sampler.probs([torch.tensor([last])], self.table[last][None])[0]
            last = int(torch.multinomial(probs, 1, generator=sampler.generator)) if self.drawn else int(probs.argmax())
            ids.append(last)
            q.append(probs)
        return Draft(torch.tensor(ids, dtype=torch.int64), torch.stack(q) if self.drawn and q else None)

    def observe(self, emitted: Sequence[Any]) -> None:
        self.last = [int(ids[-1]) if len(ids) else last for last, ids in zip(self.last, emitted, strict=True)]

    def rollback(self, counts: Sequence[int]) -> None:
        raise AssertionError("nothing is edited here")


def _p_value(statistic: float, freedom: int) -> float:
    """Of a chi-square test."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _agrees(texts: Any, p: Any) -> None:
    """Rows of tokens against transition probabilities `[V, V]`: one step, and the step after each pair."""
    p = p.double()
    pair, step = texts[:, :-1], texts[:, 1:]
    first = torch.zeros(V * V, dtype=torch.float64)
    first.index_add_(0, (pair * V + step).flatten(), torch.ones(step.numel(), dtype=torch.float64))
    _test(first.view(V, V), p)
    triple = (texts[:, :-2] * V + texts[:, 1:-1]) * V + texts[:, 2:]
    second = torch.zeros(V**3, dtype=torch.float64)
    second.index_add_(0, triple.flatten(), torch.ones(triple.numel(), dtype=torch.float64))
    _test(second.view(V * V, V), p.repeat(V, 1))


def _test(counts: Any, p: Any) -> None:
    expected = counts.sum(1, keepdim=True) * p
    assert not bool(counts[p == 0].any()), "a token that the target never says"
    enough = expected >= 5
    statistic = float((((counts - expected) ** 2 / expected)[enough]).sum())
    freedom = int((enough.sum(1) - 1).clamp(min=0).sum())
    assert _p_value(statistic, freedom) > WORST


def _draw(model: Any, drafts: Any, rows: int, new: int, **options: Any) -> Any:
    ids = torch.arange(rows)[:, None] % V
    mask = torch.ones_like(ids)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=new, do_sample=True, custom_generate=drafts, top_k=0, **options
    )


def test_the_test_notices_a_wrong_distribution():
    """Drafts that are taken greedily now and then, the commonest mistake, with few draws."""
    p, texts = _table(0).softmax(-1), [0]
    generator = torch.Generator().manual_seed(0)
    while len(texts) < 1000:
        here = p[texts[-1]]
        drawn = int(torch.multinomial(here, 1, generator=generator))
        texts.append(int(here.argmax()) if int(torch.randint(5, (), generator=generator)) == 0 else drawn)
    with pytest.raises(AssertionError):
        _agrees(torch.tensor([texts]), p)


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("drawn", [False, True], ids=["named", "drawn"])
def test_the_stock_loop(drawn: bool, draws: int):
    model, out = _model(0), []
    drafts = remnant_hf.speculate(Known(_table(1), drawn), 5)
    torch.manual_seed(0)
    for _ in range(0, draws, 2500):
        out.append(_draw(model, drafts, 1, 2500))
    assert 0.05 < drafts.stats.acceptance < 0.95
    _agrees(torch.cat(out), _table(0).softmax(-1))


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("kind", ["named", "drawn", "model", "lookup"])
def test_our_engine(kind: str, draws: int):
    """Rows whose attention runs row by row."""
    own: dict[str, Any] = {"named": Known(_table(1), False), "drawn": Known(_table(1), True), "model": _model(1)}
    drafts = remnant_hf.speculate(own.get(kind, kind), 5, generator=torch.Generator().manual_seed(0))
    out = _draw(_model(0), drafts, draws // 200, 200)
    assert drafts.stats.accepted > draws // 50
    _agrees(out, _table(0).softmax(-1))


@pytest.mark.parametrize("engine", [False, True], ids=["stock", "engine"])
def test_filters_bind_target_and_drafter(engine: bool):
    """Temperature and top-k: what is filtered out is never said, the rest is in proportion."""
    generator = torch.Generator().manual_seed(1) if engine else None
    drafts = remnant_hf.speculate(_model(1), 3, generator=generator)
    torch.manual_seed(1)
    rows, new = (40, 100) if engine else (1, 1500)
    ids = torch.zeros(rows, 1, dtype=torch.int64)
    options: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 3, "max_new_tokens": new}
    out = [_model(0).generate(ids, attention_mask=ids + 1, custom_generate=drafts, **options) for _ in range(2)]
    logits = _table(0) / 0.7
    kept = logits.masked_fill(logits < logits.topk(3, -1).values[:, -1:], float("-inf"))
    _agrees(torch.cat(out), kept.softmax(-1))


@pytest.mark.parametrize("engine", [False, True], ids=["stock", "engine"])
def test_a_generator_or_seed_repeats_a_run(lab: Any, engine: bool):
    model, ids, outs = lab.model("llama"), lab.ids(20), []
    for _ in range(2):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(5) if engine else None
        drafts = remnant_hf.speculate(model, 3, generator=generator)
        outs.append(lab.go(model, ids, None, 20, do_sample=True, custom_generate=drafts))
    assert torch.equal(*outs)
