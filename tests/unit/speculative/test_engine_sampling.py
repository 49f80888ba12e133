"""The loop when it samples: what comes out is distributed as the target's, or as the tilted target's."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")

from remnant.errors import ConfigError  # noqa: E402
from remnant.speculative import (  # noqa: E402
    Draft,
    ModelDrafter,
    Sampler,
    Tree,
    draw,
    generate,
    residual_det,
    tilt_geometric,
)

V, ROWS = 3, 3000


@pytest.fixture(scope="module")
def tables():
    r = torch.Generator().manual_seed(0)
    return torch.randn(V, V, generator=r, dtype=torch.float64), torch.randn(V, V, generator=r, dtype=torch.float64)


def sampled(target, drafter, sampler, **more):
    """Counts of the three tokens behind token 0, over many rows."""
    out = generate(target, drafter, torch.zeros(ROWS, 1, dtype=torch.int64), 3, sampler, **more)
    ids = torch.stack(out.ids)
    return torch.bincount(ids[:, 0] * V * V + ids[:, 1] * V + ids[:, 2], minlength=V**3), out.stats


def joint(p):
    return ROWS * (p[0][:, None, None] * p[:, :, None] * p[None, :, :]).flatten()


@pytest.mark.parametrize("named", [False, True])
def test_chains(tables, markov, chi_square, named):
    z, zq = tables
    sampler = Sampler(0.8, generator=torch.Generator().manual_seed(1))
    drafter: Any = ModelDrafter(markov(zq))
    if named:
        real = drafter.propose
        drafter.propose = lambda limits, _: real(limits, None)
    counts, stats = sampled(markov(z), drafter, sampler, num_draft=2)
    assert chi_square(counts, joint((z / 0.8).softmax(-1))) < 4
    assert 0 < stats.accepted < stats.proposed


class Branching:
    """Two children per node, drawn as the mode says, two levels deep."""

    name: ClassVar[str] = "branching"
    vocab_size = V

    def __init__(self, q, mode, seed):
        self.q, self.mode, self.r, self.texts = q, mode, torch.Generator().manual_seed(seed), []

    def reset(self, prompts):
        self.texts = [int(prompt[-1]) for prompt in prompts]

    def propose(self, limits, sampler=None):
        return [self.draft(root, limit) for root, limit in zip(self.texts, limits, strict=True)]

    def draft(self, root, limit):
        ids, parent = [root], [-1]
        while len(ids) < min(limit, 6) + 1:
            above = (len(ids) - 1) // 2
            q = self.q[ids[above]]
            if self.mode == "without_replacement" and len(ids) % 2 == 0:
                q = residual_det(q, torch.tensor(ids[-1]))
            ids.append((len(ids) - 1) % 2 if self.mode == "det" else int(draw(q, torch.rand((), generator=self.r))))
            parent.append(above)
        q_full = None if self.mode == "det" else self.q[torch.tensor(ids)]
        tree = Tree.of(torch.tensor(ids), torch.tensor(parent), q_full=q_full)
        return Draft(tree.ids[1:], tree=tree, mode=self.mode)

    def observe(self, emitted):
        self.texts = [int(new[-1]) if len(new) else old for old, new in zip(self.texts, emitted, strict=True)]

    def rollback(self, counts): ...


@pytest.mark.parametrize("mode", ["det", "iid", "without_replacement"])
def test_trees(tables, markov, chi_square, mode):
    z, zq = tables
    drafter = Branching(zq.softmax(-1), mode, 2)
    counts, stats = sampled(markov(z), drafter, Sampler(generator=torch.Generator().manual_seed(3)), num_draft=6)
    assert chi_square(counts, joint(z.softmax(-1))) < 4
    assert stats.accepted > ROWS / 3


def test_chains_and_trees_in_one_batch(tables, markov, chi_square):
    """Odd rows draw a chain, even rows a tree; every third row drafts nothing."""
    z, zq = tables
    trees: Any = Branching(zq.softmax(-1), "iid", 4)
    chains = ModelDrafter(markov(zq))
    sampler = Sampler(generator=torch.Generator().manual_seed(5))

    def propose(limits, rule):
        pairs = zip(Branching.propose(trees, limits), chains.propose(limits, rule), strict=True)
        none = Draft(torch.zeros(0, dtype=torch.int64))
        return [none if i % 3 == 0 else pair[i % 2] for i, pair in enumerate(pairs)]

    reset, observe = trees.reset, trees.observe
    trees.propose = propose
    trees.reset = lambda prompts: (reset(prompts), chains.reset(prompts))
    trees.observe = lambda emitted: (observe(emitted), chains.observe(emitted))
    counts, _ = sampled(markov(z), trees, sampler, num_draft=2)
    assert chi_square(counts, joint(z.softmax(-1))) < 4


def test_named_and_drawn_chains_in_one_batch(tables, markov, chi_square):
    z, zq = tables
    drafter: Any = ModelDrafter(markov(zq))
    real = drafter.propose

    def propose(limits, rule):
        drafts = real(limits, rule)
        return [Draft(1 - d.ids.clamp(max=1)) if i % 2 else d for i, d in enumerate(drafts)]

    drafter.propose = propose
    counts, _ = sampled(markov(z), drafter, Sampler(generator=torch.Generator().manual_seed(8)), num_draft=2)
    assert chi_square(counts, joint(z.softmax(-1))) < 4


@pytest.mark.parametrize("tilted", [False, True])
def test_a_drafter_that_knows_fewer_tokens(tables, markov, chi_square, tilted):
    """What it does not know has no probability in q, and none in a geometric tilt."""
    z, zq = tables
    known = zq[:, : V - 1].clone()
    drafter = ModelDrafter(markov(known), logits=tilted)
    drafter.vocab_size = V - 1
    sampler = Sampler(generator=torch.Generator().manual_seed(9))
    wide = torch.cat([known, torch.full((V, 1), float("-inf"), dtype=torch.float64)], 1)
    if tilted:
        counts, _ = sampled(markov(z), drafter, sampler, tilt=lambda a, b: tilt_geometric(a, b, 0.5), num_draft=2)
        assert chi_square(counts, joint(tilt_geometric(z, wide, 0.5).exp())) < 4
    else:
        counts, _ = sampled(markov(z), drafter, sampler, num_draft=2)
        assert chi_square(counts, joint(z.softmax(-1))) < 4


@pytest.mark.parametrize("named", [False, True])
def test_a_tilt_gives_exactly_the_tilted_distribution(tables, markov, chi_square, named):
    """The first token, corrections, the bonus, and the last token that no draft precedes."""
    z, zq = tables
    drafter: Any = ModelDrafter(markov(zq), logits=True)
    if named:
        real = drafter.propose
        drafter.propose = lambda limits, _: real(limits, None)
    sampler = Sampler(generator=torch.Generator().manual_seed(6))
    counts, _ = sampled(markov(z), drafter, sampler, tilt=lambda a, b: tilt_geometric(a, b, 0.6), num_draft=2)
    assert chi_square(counts, joint(tilt_geometric(z, zq, 0.6).exp())) < 4
    assert chi_square(counts, joint(z.softmax(-1))) > 10


def test_a_tilt_may_bring_its_own_residual(tables, markov, chi_square):
    """The released rule of RAPID: corrections from max(p - q, p - p~), the first token drafted too, bonus from p."""
    z, zq = tables

    class Released:
        tilted_bonus = False

        def __call__(self, a, b):
            return a + 20.0 * (b.softmax(-1) - a.softmax(-1))  # past q, where the second term of the residual counts

        def residual(self, p, q, tilted):
            rest = torch.maximum(p - q, p - tilted).clamp(min=0)
            return rest / rest.sum(-1, keepdim=True)

    p, q, tilted = z.softmax(-1), zq.softmax(-1), Released()(z, zq).softmax(-1)
    drafter = ModelDrafter(markov(zq), logits=True)
    sampler = Sampler(generator=torch.Generator().manual_seed(7))
    out = generate(
        markov(z), drafter, torch.zeros(ROWS, 1, dtype=torch.int64), 3, sampler, tilt=Released(), num_draft=1
    )
    ids = torch.stack(out.ids)
    accepted = torch.minimum(tilted, q)
    rest = Released().residual(p, q, tilted)
    drafted = accepted + (1 - accepted.sum(-1, keepdim=True)) * rest
    want = ROWS * (drafted[0].unsqueeze(1) * drafted).flatten()
    assert chi_square(torch.bincount(ids[:, 0] * V + ids[:, 1], minlength=V * V), want) < 4


def test_a_tilt_over_a_tree_is_refused(tables, markov):
    z, zq = tables
    drafter = Branching(zq.softmax(-1), "det", 0)
    real = drafter.draft

    def draft(root, limit):
        if limit > 1:
            return real(root, limit)
        return Draft(torch.zeros(0, dtype=torch.int64), logits=zq[root].unsqueeze(0))

    drafter.draft = draft
    with pytest.raises(ConfigError, match="tree"):
        generate(markov(z), drafter, torch.zeros(1, 1, dtype=torch.int64), 9, tilt=lambda a, b: a, num_draft=4)


def test_a_greedy_tilt(tables, markov):
    z, zq = tables
    best = tilt_geometric(z, zq, 0.5).argmax(-1).tolist()
    want, last = [], 0
    for _ in range(11):
        last = best[last]
        want.append(last)
    drafter = ModelDrafter(markov(zq), logits=True)
    out = generate(
        markov(z), drafter, torch.zeros(2, 1, dtype=torch.int64), 11, tilt=lambda a, b: tilt_geometric(a, b, 0.5)
    )
    assert [row.tolist() for row in out.ids] == [want, want]


def test_the_same_seed_gives_the_same_text(tables, markov):
    z, zq = tables

    def run(seed):
        sampler = Sampler(generator=torch.Generator().manual_seed(seed))
        out = generate(markov(z), ModelDrafter(markov(zq)), torch.zeros(4, 1, dtype=torch.int64), 30, sampler)
        return torch.stack(out.ids)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
