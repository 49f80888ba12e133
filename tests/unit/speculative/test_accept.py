"""Exactness of acceptance: enumerated over the code itself, counted over real draws, and at the edges."""

from __future__ import annotations

from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")

from remnant.errors import ConfigError, ShapeError  # noqa: E402
from remnant.speculative import Tree, accept, accept_chain, accept_tree, draw, residual, residual_det  # noqa: E402

V = 12
ALMOST = 1 - 2**-53


def dist(r, *shape, holes=0):
    """Random distributions in float64, with some tokens barred."""
    logits = 2 * torch.randn(*shape, generator=r, dtype=torch.float64)
    if holes:
        logits.scatter_(-1, torch.rand(*shape, generator=r).argsort(-1)[..., :holes], float("-inf"))
    return logits.softmax(-1)


def threshold(accepts, n):
    """Per row the chance of acceptance, by bisection of the uniform that decides it: `accepts([n]) -> [n]` bool."""
    low, high = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    for _ in range(54):
        middle = (low + high) / 2
        yes = accepts(middle)
        low, high = torch.where(yes, middle, low), torch.where(yes, high, middle)
    return low


@pytest.fixture
def drawn_from(monkeypatch):
    """The weights that the newest call of `draw` was given."""
    seen = []
    real = accept.draw
    monkeypatch.setattr(accept, "draw", lambda p, u: (seen.append(p), real(p, u))[1])
    return seen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("named", [False, True])
def test_chain_enumerated(seed, named, drawn_from):
    r = torch.Generator().manual_seed(seed)
    p, q = dist(r, 1, 2, V, holes=3), dist(r, 1, 1, V, holes=seed)
    ids, rows, q_rows = torch.arange(V).unsqueeze(1), p.expand(V, 2, V), None if named else q.expand(V, 1, V)
    chance = threshold(lambda u: accept_chain(ids, rows, q_rows, u.unsqueeze(1)).n == 1, V)
    accept_chain(ids, rows, q_rows, torch.full((V, 1), ALMOST, dtype=torch.float64))
    corrected = drawn_from[-1] / drawn_from[-1].sum(-1, keepdim=True)
    if named:  # whichever token is named, the output is p
        out = chance.unsqueeze(1) * torch.eye(V) + (1 - chance).unsqueeze(1) * corrected
        certain = p[0, 0] == 1
        assert not certain.any()
        assert (out - p[0, 0]).abs().max() < 1e-12
    else:
        out = q[0, 0] * chance + ((q[0, 0] * (1 - chance)).unsqueeze(1) * corrected).sum(0)
        assert (out - p[0, 0]).abs().max() < 1e-12
        assert abs((q[0, 0] * chance).sum() - torch.minimum(p[0, 0], q[0, 0]).sum()) < 1e-12


def test_all_accepted_draws_the_bonus_from_the_last_column(drawn_from):
    p = dist(torch.Generator().manual_seed(0), 5, 4, V)
    ids = p[:, :3].argmax(-1)
    done = accept_chain(ids, p, p[:, :3], torch.full((5, 4), ALMOST, dtype=torch.float64))
    assert done.n.tolist() == [3] * 5
    assert done.path_len.tolist() == [4] * 5
    assert torch.equal(drawn_from[-1], p[:, 3])


@pytest.mark.parametrize("mode", ["iid", "without_replacement"])
def test_drawn_children_enumerated(mode, drawn_from):
    r = torch.Generator().manual_seed(7)
    p, q = dist(r, V, holes=2), dist(r, V, holes=3)
    out = torch.zeros(V, dtype=torch.float64)
    for a in q.nonzero().flatten().tolist():
        second = q if mode == "iid" else residual_det(q, torch.tensor(a))
        for b in second.nonzero().flatten().tolist():
            out += q[a] * second[b] * node(p, q, [a, b], mode, drawn_from)
    assert (out - p).abs().max() < 1e-12


@pytest.mark.parametrize("children", [[3], [5, 0, 7], [4, 4, 1, 4], list(range(V))])
def test_listed_children_enumerated(children, drawn_from):
    p = dist(torch.Generator().manual_seed(3), V, holes=2)
    assert (node(p, None, children, "det", drawn_from) - p).abs().max() < 1e-12


def node(p, q, children, mode, drawn_from):
    """What a node with these children emits first, from the walk's own decisions."""
    m = len(children)
    tree = Tree.of(
        torch.tensor([0, *children]), torch.tensor([-1] + [0] * m), q_full=None if q is None else q.expand(m + 1, V)
    )
    rows = p.expand(m + 1, V)
    out, left = torch.zeros(V, dtype=torch.float64), 1.0
    for place in range(m):

        def accepts(x, place=place):
            u = torch.full((m + 1,), ALMOST, dtype=torch.float64)
            u[1 + place] = x
            return torch.tensor([accept_tree(tree, rows, mode, u).path.tolist() == [1 + place]])

        if not bool(accepts(0.0)):
            continue
        certain = bool(accepts(ALMOST))
        chance = 1.0 if certain else float(threshold(lambda x: accepts(float(x)), 1))
        out[children[place]] += left * chance
        left *= 1 - chance
        if certain:
            return out
    walk = accept_tree(tree, rows, mode, torch.full((m + 1,), ALMOST, dtype=torch.float64))
    assert not walk.path.numel()
    return out + left * drawn_from[-1] / drawn_from[-1].sum()


def test_draw_is_the_inverse_cdf():
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, ALMOST], dtype=torch.float64)
    assert draw(p.expand(6, 6).contiguous(), u).tolist() == [1, 1, 3, 3, 4, 4]
    assert draw(7 * p.expand(6, 6), u).tolist() == [1, 1, 3, 3, 4, 4]


def test_joint_of_three_tokens(chi_square):
    """A wrong place in p or q shifts the pairs, which single tokens would not show."""
    r, v, rows, g = torch.Generator().manual_seed(0), 4, 200_000, 3
    target = dist(r, v, v, holes=1)
    drafter = dist(r, v, v)
    text = torch.zeros(rows, 3 + g + 1, dtype=torch.int64)
    have = torch.zeros(rows, dtype=torch.int64)  # tokens behind the start token, which is 0
    at = torch.arange(rows)
    while bool((have < 3).any()):
        last = text[at, have]
        ids = torch.zeros(rows, g, dtype=torch.int64)
        for i in range(g):
            ids[:, i] = draw(drafter[ids[:, i - 1] if i else last], torch.rand(rows, generator=r))
        before = torch.cat([last.unsqueeze(1), ids], 1)
        done = accept_chain(ids, target[before], drafter[before[:, :g]], generator=r)
        for i in range(g + 1):
            token = torch.where(i < done.n, ids[:, min(i, g - 1)], done.next)
            place = torch.where(i < done.path_len, (have + 1 + i).clamp(max=text.shape[1] - 1), 0)
            text[at, place] = torch.where(place > 0, token, 0)
        have += done.path_len
        have.clamp_(max=3)
    cells = text[:, 1] * v * v + text[:, 2] * v + text[:, 3]
    joint = target[0][:, None, None] * target[:, :, None] * target[None, :, :]
    assert chi_square(torch.bincount(cells, minlength=v**3), rows * joint.flatten()) < 4


@pytest.mark.parametrize("mode", ["det", "iid", "without_replacement"])
def test_joint_of_two_tokens_from_trees(mode, chi_square):
    r, v, runs = torch.Generator().manual_seed(1), 3, 3_000
    target, drafter = dist(r, v, v), dist(r, v, v)
    counts = torch.zeros(v * v)
    parent = torch.tensor([-1, 0, 0, 1, 1, 2, 2])
    for _ in range(runs):
        ids = [0]
        for above in (0, 1, 2):
            q = drafter[ids[above]]
            first = int(draw(q, torch.rand((), generator=r)))
            rest = residual_det(q, torch.tensor(first)) if mode == "without_replacement" else q
            second = int(draw(rest, torch.rand((), generator=r)))
            ids += [0, 1] if mode == "det" else [first, second]
        q_full = None if mode == "det" else drafter[torch.tensor(ids)]
        walk = accept_tree(Tree.of(torch.tensor(ids), parent, q_full=q_full), target[ids], mode, generator=r)
        text = [ids[i] for i in walk.path.tolist()] + [int(walk.next)]
        if len(text) < 2:
            text.append(int(draw(target[text[0]], torch.rand((), generator=r))))
        counts[text[0] * v + text[1]] += 1
    assert chi_square(counts, runs * (target[0][:, None] * target).flatten()) < 4


def test_ragged_rows_equal_single_rows():
    r = torch.Generator().manual_seed(5)
    p, q = dist(r, 6, 5, V, holes=2), dist(r, 6, 4, V)
    ids, u = torch.randint(V, (6, 4), generator=r), torch.rand(6, 5, generator=r, dtype=torch.float64)
    u[:, :4] *= 0.6
    lengths = torch.tensor([0, 1, 2, 3, 4, 4])
    ragged = ids.clone()
    for row, n in enumerate(lengths.tolist()):  # what lies behind a row's draft is never read
        ragged[row, n:] = 10**6
        p[row, n + 1 :] = float("nan")
    for which in (q, None):
        done = accept_chain(ragged, p, which, u, len=lengths)
        assert bool((done.n <= lengths).all())
        for row, n in enumerate(lengths.tolist()):
            own = torch.cat([u[row, :n], u[row, 4:]]).unsqueeze(0)
            one = None if which is None else which[row : row + 1, :n]
            alone = accept_chain(ids[row : row + 1, :n], p[row : row + 1, : n + 1], one, own)
            assert (alone.n[0], alone.next[0]) == (done.n[row], done.next[row])


def test_greedy_is_argmax():
    best = torch.tensor([[2, 0, 1, 3]])
    p = torch.nn.functional.one_hot(best, 5).float()
    for draft, n in (([2, 0, 1], 3), ([2, 0, 4], 2), ([1, 0, 1], 0)):
        for u in (0.0, ALMOST):
            done = accept_chain(torch.tensor([draft]), p, u=torch.full((1, 4), u, dtype=torch.float64))
            assert (int(done.n), int(done.next)) == (n, int(best[0, n]))


def test_the_greedy_short_cut_is_the_same_rule():
    r = torch.Generator().manual_seed(4)
    best, ids = torch.randint(2, (200, 5), generator=r), torch.randint(2, (200, 4), generator=r)
    lengths = torch.randint(5, (200,), generator=r)
    whole = accept_chain(ids, torch.nn.functional.one_hot(best, 3).double(), len=lengths, generator=r)
    short = accept.accept_greedy(ids, best, lengths)
    assert all(torch.equal(a, b) for a, b in zip(whole, short, strict=True))
    assert set(whole.n.tolist()) == {0, 1, 2, 3, 4}


def test_no_mass_is_never_accepted():
    p = torch.tensor([[[0.0, 0.4, 0.6], [1.0, 0.0, 0.0]]])
    for q in (None, torch.tensor([[[1.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 1.0, 0.0]]])):
        done = accept_chain(torch.tensor([[0]]), p, q, torch.zeros(1, 2))
        assert (int(done.n), int(done.next)) == (0, 1 if q is None or q[0, 0, 0] == 1 else 2)
    tree = Tree.of(torch.tensor([1, 0]), torch.tensor([-1, 0]), q_full=torch.eye(3)[[0, 0]])
    for mode in ("det", "iid", "without_replacement"):
        assert not accept_tree(tree, p[0], mode, torch.zeros(2)).path.numel()


def test_a_token_the_drafter_gave_no_mass_is_accepted_by_its_own():
    done = accept_chain(torch.tensor([[1]]), torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0]]]))
    assert int(done.n) == 1


def test_residual_without_mass_is_the_target():
    p = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert torch.equal(residual(p, p), p)
    assert torch.equal(residual_det(p, torch.tensor([0, 0])), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert torch.equal(residual(p[0], torch.tensor([0.75, 0.25])), torch.tensor([0.0, 1.0]))
    assert residual(p.half(), p.half()).dtype == torch.float32
    assert residual(p.double(), p.double()).dtype == torch.float64


def test_the_last_child_with_all_the_mass_is_accepted():
    tree = Tree.of(torch.tensor([0, 1, 2]), torch.tensor([-1, 0, 0]))
    p = torch.tensor([[0.0, 0.3, 0.7]] * 3, dtype=torch.float64)
    u = torch.full((3,), ALMOST, dtype=torch.float64)
    assert accept_tree(tree, p, "det", u).path.tolist() == [2]


def test_barred_tokens_come_in_as_minus_infinity():
    logits = torch.full((1, 2, V), float("-inf"))
    logits[..., 4] = 0.0
    p = logits.softmax(-1)
    done = accept_chain(torch.tensor([[4]]), p, p[:, :1])
    assert (int(done.n), int(done.next)) == (1, 4)


def test_a_generator_makes_it_repeatable():
    r = torch.Generator().manual_seed(2)
    p, q, ids = dist(r, 64, 4, V), dist(r, 64, 3, V), torch.randint(V, (64, 3), generator=r)
    runs = [accept_chain(ids, p, q, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0].next, runs[1].next)
    assert not torch.equal(runs[0].next, runs[2].next)


def test_an_empty_draft_draws_from_the_target():
    p = torch.tensor([[[0.0, 1.0, 0.0]]])
    for q in (None, torch.zeros(1, 0, 3)):
        done = accept_chain(torch.zeros(1, 0, dtype=torch.int64), p, q)
        assert (int(done.n), int(done.next), int(done.path_len)) == (0, 1, 1)


IDS, P = torch.tensor([[1, 2]]), torch.full((1, 3, 4), 0.25)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((IDS.int(), P), "int64"),
        ((IDS, P[:, :2]), r"\[1, 3, V\]"),
        ((IDS, P, P), r"\[1, 2, 4\]"),
        ((IDS, P, None, torch.zeros(1)), "uniforms"),
        ((IDS + 2, P), "vocabulary"),
        ((IDS - 2, P), "vocabulary"),
        ((IDS, P * 4), "probabilities, not logits"),
        ((IDS, P * float("nan")), "sum to 1"),
    ],
)
def test_a_chain_that_does_not_fit(arguments, words):
    with pytest.raises(ShapeError, match=words):
        accept_chain(*arguments)


@pytest.mark.parametrize("length", [torch.tensor([3]), torch.tensor([-1]), torch.tensor([1, 1])])
def test_lengths_that_do_not_fit(length):
    with pytest.raises(ShapeError, match="length"):
        accept_chain(IDS, P, len=length)


def test_a_tree_that_does_not_fit():
    tree = Tree.of(torch.tensor([0, 1, 5]), torch.tensor([-1, 0, 1]))
    with pytest.raises(ShapeError, match=r"\[3, V\]"):
        accept_tree(tree, P[0, :2])
    with pytest.raises(ConfigError, match="mode 'best'"):
        accept_tree(tree, P[0], cast("Any", "best"))
    with pytest.raises(ConfigError, match="q_full"):
        accept_tree(tree, P[0], "iid")
    with pytest.raises(ShapeError, match="uniforms"):
        accept_tree(tree, P[0], u=torch.zeros(2))
    with pytest.raises(ShapeError, match="0 to 3"):
        accept_tree(tree, P[0], u=torch.zeros(3))
    with pytest.raises(ShapeError, match="sums to"):
        accept_tree(tree, P[0] * 4)
