"""Acceptance with and without trimming: by hand, by its bounds, and on the trained testbed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.speculative.vocab_counts import Tokens, count_tokens
from remnant.speculative.vocab_map import VocabMap
from remnant.speculative.vocab_measure import acceptance, between, expected_overlap, measure, written_by


def constant(*p: float) -> Callable[[Tensor], Tensor]:
    """A model that always says the same."""
    row = torch.tensor(p).log()
    return lambda ids: row.expand(1, ids.shape[1], len(p))


P, Q = (0.5, 0.3, 0.2, 0.0), (0.2, 0.2, 0.1, 0.5)


def test_by_hand():
    """min(p, q) = .2 .2 .1; trimmed to 0 and 1 the drafter has .5 .5: .5 + .3; to all but 3: .4 .4 .2."""
    texts = [Tokens(torch.arange(3)), Tokens(torch.arange(1))]
    g, mass = expected_overlap(constant(*P), constant(*Q), texts)
    assert g.tolist() == pytest.approx([0.2, 0.2, 0.1, 0.0])
    assert mass.tolist() == pytest.approx(P)
    maps = [VocabMap.from_ids(ids, 4) for ids in ([0, 1], [0, 1, 2], [3], [0, 1, 2, 3])]
    whole, positions, found = measure(constant(*P), constant(*Q), texts, maps)
    assert (positions, whole) == (2, pytest.approx(0.5))
    assert [row.k for row in found] == [2, 3, 1, 4]
    assert [row.acceptance for row in found] == pytest.approx([0.8, 0.9, 0.0, 0.5])
    assert [row.coverage for row in found] == pytest.approx([0.8, 1.0, 0.0, 1.0])
    assert [row.bound for row in found] == pytest.approx([0.5 - 0.2, 0.5, 0.5 - 0.5, 0.5], abs=1e-6)


def test_greedy_by_hand():
    """Greedily the trimmed drafter proposes the best of what it kept."""
    maps = [VocabMap.from_ids(ids, 4) for ids in ([0, 2], [2, 3])]
    whole, _, found = measure(constant(*P), constant(*Q), [Tokens(torch.arange(5))], maps, temperature=0)
    assert whole == 0.0
    assert [row.acceptance for row in found] == [1.0, 0.0]


def test_only_what_counts_is_compared():
    """A model that depends on its text: positions before a token that does not count are left out."""
    table = torch.softmax(torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0)), -1)
    ids, counted = torch.tensor([1, 4, 2, 5]), torch.tensor([True, False, True, True])
    g, _ = expected_overlap(lambda x: table[0].log()[x], lambda x: table[1].log()[x], [Tokens(ids, counted)])
    wanted = torch.minimum(table[0], table[1])[[4, 2]].mean(0)
    assert g.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_bounds(temperature: float):
    """Whatever is kept: sum of g <= acceptance <= sum of E[p], and never below the guarantee."""
    r = torch.Generator().manual_seed(1)
    tables = torch.randn(2, 30, 30, generator=r) * 3
    target, draft = (lambda ids, t=t: t[ids] for t in tables)
    texts = [Tokens(torch.randint(30, (400,), generator=r))]
    g, mass = expected_overlap(target, draft, texts, temperature)
    maps = [VocabMap.from_counts(torch.rand(30, generator=r), k) for k in (1, 3, 10, 29, 30)]
    whole, _, found = measure(target, draft, texts, maps, temperature)
    for vmap, row in zip(maps, found, strict=True):
        assert float(vmap.coverage(g)) - 1e-6 <= row.acceptance <= float(vmap.coverage(mass)) + 1e-6
        assert row.acceptance >= row.bound - 1e-6
        assert row.coverage == pytest.approx(float(vmap.coverage(mass)), abs=1e-5)
    assert found[-1].acceptance == pytest.approx(whole, abs=1e-6)


def test_refusals():
    with pytest.raises(ConfigError, match="no position"):
        expected_overlap(constant(*P), constant(*Q), [Tokens(torch.arange(1))])
    with pytest.raises(ConfigError, match="no position"):
        measure(constant(*P), constant(*Q), [], [])
    with pytest.raises(ShapeError, match="a target over 4 tokens, a drafter over 2"):
        expected_overlap(constant(*P), constant(0.5, 0.5), [Tokens(torch.arange(3))])


def test_the_best_modular_set_by_enumeration():
    """Of all sets of two, the two largest values of g have the best lower bound."""
    r = torch.Generator().manual_seed(5)
    p, q = torch.softmax(torch.randn(2, 7, generator=r), -1)
    g = torch.minimum(p, q)
    best = max(((i, j) for i in range(7) for j in range(i + 1, 7)), key=lambda s: float(g[list(s)].sum()))
    assert VocabMap.from_counts(g, 2).keep.tolist() == list(best)


@pytest.fixture(scope="module")
def pair() -> Any:
    """The trained testbed, a worse copy of it as drafter, and real text in two parts."""
    pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")
    from remnant.testbed import load
    from remnant.testbed.text import load_corpus, load_held_out

    model, tokenizer = load()
    worse, r = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for x in worse.parameters():
        x.data += 0.15 * x.data.std() * torch.randn(x.shape, generator=r)

    def texts(documents: Any, count: int) -> list[Tokens]:
        ids = tokenizer("\n\n".join(documents), add_special_tokens=False).input_ids[:count]
        begin = torch.tensor([tokenizer.bos_token_id])
        parts = [torch.cat([begin, torch.tensor(ids[i : i + 255])]) for i in range(0, len(ids) - 254, 255)]
        return [Tokens(part, torch.arange(256) > 0) for part in parts]

    learn, held = texts(load_corpus().train[:40], 6000), texts(load_held_out()[:20], 3000)
    return lambda ids: model(ids).logits, lambda ids: worse(ids).logits, learn, held


def test_expected_acceptance_beats_counts(pair: Any):
    """Chosen on one text, measured on another: no worse than counts of tokens at any k, and better in all."""
    target, draft, learn, held = pair
    counts = count_tokens(learn, 2048)
    scores = between(*expected_overlap(target, draft, learn), counts)
    ks = (100, 200, 800)
    maps = [VocabMap.from_counts(s, k) for k in ks for s in (counts, scores)]
    whole, _, found = measure(target, draft, held, maps)
    gains = [found[2 * i + 1].acceptance - found[2 * i].acceptance for i in range(len(ks))]
    assert min(gains) >= 0
    assert sum(gains) > 0.01
    assert 0.5 < whole < 0.95
    for row in found:
        assert row.acceptance >= row.bound - 1e-6


def test_a_trimmed_drafter_reads_less_and_gains(pair: Any):
    """Half of the head goes, acceptance falls a little, and the speed-up of the cost model rises."""
    from remnant.speculative import block_efficiency, mbsu

    target, draft, learn, held = pair
    k, rest, row, whole = 1024, 50_000, 128, 2_000_000  # a head of most of a small drafter, as drafters are
    vmap = VocabMap.from_counts(count_tokens(learn, 2048), k)
    before, _, [after] = measure(target, draft, held, [vmap])
    gains = [
        mbsu(block_efficiency(a, 3), (rest + rows * row) / whole, 3)
        for a, rows in ((before, 2048), (after.acceptance, k))
    ]
    assert after.acceptance <= before
    assert gains[1] > gains[0]


def test_answers(pair: Any):
    from remnant.testbed import load

    model, tokenizer = load()
    prompts = [Tokens(torch.tensor(tokenizer(text).input_ids)) for text in ("The list", "A string is")]
    found = list(written_by(model, prompts, 9))
    for prompt, tokens in zip(prompts, found, strict=True):
        wanted = model.generate(prompt.ids[None], max_new_tokens=9, do_sample=False)[0]
        assert tokens.ids.tolist() == wanted.tolist()
        assert tokens.chosen().tolist() == wanted[len(prompt.ids) :].tolist()
    sampled = [
        next(written_by(model, prompts, 9, 1.0, torch.Generator().manual_seed(seed))).ids.tolist() for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_agreement_of_p_with_itself():
    p = torch.softmax(torch.randn(3, 9), -1)
    assert acceptance(p, p).tolist() == pytest.approx([1.0] * 3)
