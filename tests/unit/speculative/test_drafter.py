"""The drafter that is a model: its guesses, its distributions, its cache, and taking tokens back."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from remnant.errors import ConfigError, ShapeError  # noqa: E402
from remnant.speculative import (  # noqa: E402
    Draft,
    Drafter,
    ModelDrafter,
    Sampler,
    generate,
    get_drafter,
    list_drafters,
)

VOCAB = 23
PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9]), torch.tensor([2, 6, 5])]


@pytest.fixture
def small(tiny):
    return tiny(VOCAB, seed=4, layers=1)


def emit(*rows):
    return [torch.tensor(row, dtype=torch.int64) for row in rows]


def test_it_drafts_what_its_model_would_write(small):
    drafter = ModelDrafter(small)
    assert isinstance(drafter, Drafter)
    drafter.reset(PROMPTS)
    drafts = drafter.propose([4, 2, 3])
    assert [draft.ids.tolist() for draft in drafts] == [
        small.greedy(p, n) for p, n in zip(PROMPTS, (4, 2, 3), strict=True)
    ]
    assert all(draft.q is None and draft.logits is None for draft in drafts)


def test_a_draft_follows_what_was_emitted(small):
    """Accepted wholly, in part, not at all, and cut short: the next draft is that of a fresh model."""
    drafter, texts = ModelDrafter(small), [prompt.tolist() for prompt in PROMPTS]
    drafter.reset(PROMPTS)
    r = torch.Generator().manual_seed(0)
    for turn in range(8):
        drafts = drafter.propose([4, 3, 4])
        news = []
        for text, draft in zip(texts, drafts, strict=True):
            n = int(torch.randint(0, len(draft) + 1, (), generator=r))
            tokens = [*draft.ids[:n].tolist(), int(torch.randint(VOCAB, (), generator=r))]
            news.append(tokens[: max(1, n)] if turn == 3 else tokens)
            text += news[-1]
        drafter.observe(emit(*news))
        for row, cache in enumerate(small.caches):  # only emitted tokens are cached, never the newest
            n = cache.shape[3]
            assert len(texts[row]) - 3 < n < len(texts[row]) or turn == 3
            assert (cache - small.fresh(torch.tensor(texts[row][:n]))[1]).abs().max() < 1e-10
        want = [small.greedy(torch.tensor(text), 3) for text in texts]
        assert [draft.ids.tolist() for draft in drafter.propose([3, 3, 3])] == want
        drafter.observe(emit([1], [2], [3]))
        texts = [[*text, extra] for text, extra in zip(texts, (1, 2, 3), strict=True)]


def test_each_token_is_fed_once(small):
    drafter = ModelDrafter(small)
    drafter.reset(PROMPTS[:1])
    fed = []

    def step(tokens, *rest, real=small.step):
        fed.append(tokens.shape[1])
        return real(tokens, *rest)

    small.step = step
    first = drafter.propose([3])[0].ids.tolist()
    assert fed == [1, 1]  # the prompt's own logits gave the first token, the last is not fed
    drafter.observe(emit([*first, 7]))
    drafter.propose([1])
    assert fed == [1, 1, 2]  # the draft's last token and the bonus
    drafter.observe(emit([20]))
    drafter.propose([1])
    assert fed == [1, 1, 2, 1]


def test_finished_rows_are_left_alone(small):
    drafter = ModelDrafter(small)
    drafter.reset(PROMPTS)
    assert [len(draft) for draft in drafter.propose([0, 0, 0])] == [0, 0, 0]
    assert small.steps == 0
    drafter.observe(emit([1], [2], [3]))
    assert [len(draft) for draft in drafter.propose([0, 2, 0])] == [0, 2, 0]
    drafter.observe(emit([], [5], []))
    text = torch.tensor([*PROMPTS[0].tolist(), 1])
    assert drafter.propose([2, 0, 0])[0].ids.tolist() == small.greedy(text, 2)


def test_nothing_is_read_before_a_draft_is_wanted(small):
    drafter = ModelDrafter(small)
    drafter.reset(PROMPTS)
    drafter.observe(emit([1, 2], [3], []))
    drafter.rollback([1, 0, 0])
    assert drafter.nbytes() == small.steps == 0
    drafts = drafter.propose([2, 0, 2])
    assert [cache.shape[3] for cache in small.caches] == [7, 2, 4]  # the text, and one drafted token
    assert drafts[0].ids.tolist() == small.greedy(torch.tensor([3, 1, 4, 1, 5, 1]), 2)
    drafter.observe(emit([7], [8], [9]))
    assert drafter.propose([0, 2, 0])[1].ids.tolist() == small.greedy(torch.tensor([9, 3, 8]), 2)
    drafter.reset(PROMPTS)
    assert drafter.propose([1, 1, 1])[2].ids.tolist() == small.greedy(PROMPTS[2], 1)


def test_q_is_the_distribution_that_was_drawn_from(small):
    sampler = Sampler(0.8, top_k=5, generator=torch.Generator().manual_seed(0))
    drafter = ModelDrafter(small)
    drafter.reset(PROMPTS)
    for row, draft in enumerate(drafter.propose([3, 3, 3], sampler)):
        assert draft.q is not None
        whole = torch.cat([PROMPTS[row], draft.ids])
        logits = small.fresh(whole)[0][len(PROMPTS[row]) - 1 : -1]
        assert torch.allclose(draft.q, Sampler(0.8, top_k=5).probs([], logits).float(), atol=1e-6)
        assert bool((draft.q.gather(1, draft.ids.unsqueeze(1)) > 0).all())


def test_draws_follow_q(small, chi_square):
    rows = 4000
    drafter = ModelDrafter(small)
    drafter.reset([PROMPTS[2]] * rows)
    drafts = drafter.propose([1] * rows, Sampler(generator=torch.Generator().manual_seed(1)))
    counts = torch.bincount(torch.cat([draft.ids for draft in drafts]), minlength=VOCAB)
    assert drafts[0].q is not None
    q = drafts[0].q[0].double()
    assert chi_square(counts[q * rows > 1], (q * rows)[q * rows > 1]) < 4.5


def test_logits_are_kept_with_one_more(small):
    drafter = ModelDrafter(small, logits=True)
    drafter.reset(PROMPTS)
    for _ in range(2):
        drafts = drafter.propose([3, 1, 2])
        for row, draft in enumerate(drafts):
            assert draft.logits is not None
            whole = torch.tensor([*drafter._follow.texts[row], *draft.ids.tolist()])
            assert torch.allclose(draft.logits, small.fresh(whole)[0][-len(draft) - 1 :])
            cut = draft.first(1).logits
            assert cut is not None
            assert torch.equal(cut, draft.logits[:2])
        drafter.observe([draft.ids for draft in drafts])


def test_it_stops_where_it_is_unsure(small):
    text = torch.cat([PROMPTS[0], torch.tensor(small.greedy(PROMPTS[0], 6))])
    best = small.fresh(text)[0].softmax(-1).amax(-1)[len(PROMPTS[0]) - 1 :].tolist()
    for bar in (0.0, *best[:4], 1.0):
        drafter = ModelDrafter(small, confidence=max(0.0, bar - 1e-6))
        drafter.reset(PROMPTS[:1])
        want = next((i for i, share in enumerate(best[:6]) if share < bar - 1e-6), 6)
        assert len(drafter.propose([6])[0]) == want


def test_processors_see_the_draft(small):
    def no_repeat(before, scores):
        scores[0, before[0]] = float("-inf")
        return scores

    drafter = ModelDrafter(small)
    drafter.reset(PROMPTS)
    for row, draft in enumerate(drafter.propose([5, 5, 5], Sampler(0.0, processors=[no_repeat]))):
        assert draft.ids.tolist() == small.greedy(PROMPTS[row], 5, process=no_repeat)
    drafter = ModelDrafter(small, history="generated")
    drafter.reset(PROMPTS[:1])
    got = drafter.propose([5], Sampler(0.0, processors=[no_repeat]))[0].ids.tolist()
    assert got == small.greedy(PROMPTS[0], 5, process=lambda b, s: no_repeat(b[:, 5:], s))


def test_rollback(small):
    drafter = ModelDrafter(small)
    drafter.reset(PROMPTS)
    drafter.observe([draft.ids for draft in drafter.propose([4, 4, 4])])
    whole = [text.copy() for text in drafter._follow.texts]
    drafter.propose([2, 2, 2])
    drafter.rollback([0, 3, 4])
    for row, draft in enumerate(drafter.propose([3, 3, 3])):
        text = whole[row][: len(whole[row]) - (0, 3, 4)[row]]
        assert draft.ids.tolist() == small.greedy(torch.tensor(text), 3)
    with pytest.raises(ConfigError, match="0 to 4"):
        drafter.rollback([5, 0, 0])


@pytest.mark.parametrize("g", [1, 3, 6])
def test_greedy_equality_with_a_real_drafter(tiny, small, g):
    model = tiny(VOCAB)
    want = [model.greedy(prompt, 25) for prompt in PROMPTS]
    for drafter in (ModelDrafter(small), ModelDrafter(tiny(VOCAB)), ModelDrafter(small, confidence=0.5)):
        out = generate(model, drafter, PROMPTS, 25, num_draft=g, eos=want[2][11])
        for row, text in zip(out.ids, want, strict=True):
            assert row.tolist() == (text[: text.index(want[2][11]) + 1] if want[2][11] in text else text)
    itself = generate(model, ModelDrafter(tiny(VOCAB)), PROMPTS, 25, num_draft=g)
    assert itself.stats.acceptance == 1.0
    assert itself.stats.draft_bytes == itself.stats.target_bytes > 0


def test_by_name(small):
    assert "model" in list_drafters()
    assert isinstance(get_drafter("model", model=small, confidence=0.2), ModelDrafter)
    with pytest.raises(ConfigError, match="unknown drafter"):
        get_drafter("modle")
    with pytest.raises(ConfigError, match="model"):
        get_drafter("model")


def test_drafts_that_do_not_fit(small):
    with pytest.raises(ShapeError, match="int64"):
        Draft(torch.zeros(2))
    with pytest.raises(ShapeError, match=r"\[2, V\]"):
        Draft(torch.zeros(2, dtype=torch.int64), torch.zeros(1, 4))
    with pytest.raises(ShapeError, match=r"\[3, V\]"):
        Draft(torch.zeros(2, dtype=torch.int64), logits=torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="confidence"):
        ModelDrafter(small, confidence=1.5)
    with pytest.raises(ConfigError, match="1 limits for 0 rows"):
        ModelDrafter(small).propose([1])
