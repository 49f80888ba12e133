"""The drafter that grows trees: its trees, its passes, its cache, and plain decoding through it."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from remnant.errors import ConfigError  # noqa: E402
from remnant.speculative import (  # noqa: E402
    Drafter,
    ModelDrafter,
    Sampler,
    Tree,
    TreeDrafter,
    generate,
    get_drafter,
)

VOCAB = 23
PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9]), torch.tensor([2, 6, 5])]


@pytest.fixture
def small(tiny):
    return tiny(VOCAB, seed=4, layers=1)


def alone(small, text, depth, top_k, n):
    """The tree of one text, every path run afresh without any cache."""

    def logits(paths):
        return torch.stack([small.fresh(torch.cat([text[:-1], path]))[0][-1] for path in paths])

    return Tree.from_topk(logits, depth, top_k, n, root=text[-1])


@pytest.mark.parametrize(("depth", "top_k", "n"), [(1, 1, 2), (1, 5, 4), (3, 2, 9), (4, 3, 12), (5, 1, 9)])
def test_trees_are_those_of_a_fresh_model(small, depth, top_k, n):
    drafter, texts = TreeDrafter(small, depth, top_k, n), list(PROMPTS)
    assert isinstance(drafter, Drafter)
    drafter.reset(PROMPTS)
    for turn in range(3):
        begin = small.steps
        drafts = drafter.propose([99, 99, 99])
        assert small.steps - begin == depth - (turn == 0)  # the prompt's own pass is the first level's
        for draft, text in zip(drafts, texts, strict=True):
            want = alone(small, text, depth, top_k, n)
            assert draft.tree is not None
            assert draft.ids.tolist() == want.ids[1:].tolist()
            assert draft.tree.parent.tolist() == want.parent.tolist()
            assert torch.allclose(draft.tree.q_node, want.q_node)
        news = [draft.ids[: turn + 1] for draft in drafts]
        drafter.observe(news)
        texts = [torch.cat(pair) for pair in zip(texts, news, strict=True)]


def test_no_guess_stays_cached(small):
    drafter = TreeDrafter(small, 3, 2, 8)
    drafter.reset(PROMPTS)
    drafter.propose([7, 7, 7])
    assert [cache.shape[3] for cache in small.caches] == [5, 1, 3]
    drafter.observe([torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([], dtype=torch.int64)])
    drafter.propose([7, 7, 0])
    assert [cache.shape[3] for cache in small.caches] == [7, 2, 3]
    drafter.rollback([1, 0, 0])
    assert [cache.shape[3] for cache in small.caches] == [5, 2, 3]
    draft = drafter.propose([7, 0, 0])[0]
    assert draft.ids.tolist() == alone(small, torch.tensor([3, 1, 4, 1, 5, 1]), 3, 2, 8).ids[1:].tolist()


def test_limits_bound_nodes(small):
    drafter = TreeDrafter(small, 4, 3, 12)
    drafter.reset(PROMPTS)
    assert [len(draft) for draft in drafter.propose([0, 1, 5])] == [0, 1, 5]
    assert [len(draft) for draft in drafter.propose([99, 99, 99])] == [11, 11, 11]


@pytest.mark.parametrize("processed", [False, True])
def test_plain_decoding_in_fewer_passes(tiny, small, processed):
    def no_repeat(before, scores):
        scores[0, before[0, -3:]] = float("-inf")
        return scores

    model = tiny(VOCAB)
    process = no_repeat if processed else None
    want = [model.greedy(prompt, 21, process=process) for prompt in PROMPTS]
    sampler = Sampler(0.0, processors=[no_repeat] if processed else [])
    tree = generate(model, TreeDrafter(small, 3, 4, 20), PROMPTS, 21, sampler, num_draft=19)
    assert [row.tolist() for row in tree.ids] == want
    twin = generate(model, TreeDrafter(tiny(VOCAB), 3, 2, 7), PROMPTS, 21, sampler, num_draft=6)
    assert [row.tolist() for row in twin.ids] == want
    assert processed or twin.stats.block_efficiency > 3
    chain = generate(model, ModelDrafter(small), PROMPTS, 21, sampler, num_draft=3)
    assert tree.stats.passes <= chain.stats.passes


def test_sampled_output_is_the_targets(markov, chi_square):
    r = torch.Generator().manual_seed(0)
    z, zq = (torch.randn(4, 4, generator=r, dtype=torch.float64) for _ in "ab")
    sampler = Sampler(0.9, generator=torch.Generator().manual_seed(1))
    drafter = TreeDrafter(markov(zq), 2, 2, 5)
    out = generate(markov(z), drafter, torch.zeros(3000, 1, dtype=torch.int64), 2, sampler, num_draft=4)
    ids = torch.stack(out.ids)
    p = (z / 0.9).softmax(-1)
    counts = torch.bincount(ids[:, 0] * 4 + ids[:, 1], minlength=16)
    assert chi_square(counts, 3000 * (p[0].unsqueeze(1) * p).flatten()) < 4


def test_by_name_and_bounds(small):
    drafter: Any = get_drafter("tree", model=small, depth=2, top_k=2, n=5)
    assert isinstance(drafter, TreeDrafter)
    assert drafter.nbytes() == 0
    for bad in ({"depth": 0}, {"top_k": 0}, {"n": 0}):
        with pytest.raises(ConfigError, match="1 or more"):
            TreeDrafter(small, **bad)
    with pytest.raises(ConfigError, match="0 rows"):
        TreeDrafter(small).propose([1])
