"""Trees: what they hold to, how they grow, and fuzzed ones against plain definitions."""

from __future__ import annotations

import itertools

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from remnant.errors import ConfigError, ShapeError  # noqa: E402
from remnant.speculative import Tree, accept_tree  # noqa: E402


@st.composite
def parents(draw, most=14):
    """Parents of a random tree, root first."""
    n = draw(st.integers(1, most))
    return [-1] + [draw(st.integers(0, i - 1)) for i in range(1, n)]


def ancestors(parent, node):
    return {node} if parent[node] < 0 else {node} | ancestors(parent, parent[node])


@given(parents())
@settings(max_examples=60, deadline=None)
def test_mask_positions_and_paths(parent):
    tree = Tree.of(torch.arange(len(parent)), torch.tensor(parent))
    mask = tree.mask()
    for node in range(len(parent)):
        assert set(mask[node].nonzero().flatten().tolist()) == ancestors(parent, node)
        assert tree.path(node)[::-1][0] == node
        assert set(tree.path(node)) == ancestors(parent, node)
        assert tree.children(node).tolist() == [i for i, above in enumerate(parent) if above == node]
    assert torch.equal(tree.positions(5), mask.sum(1) - 1 + 5)
    table = tree.retrieve()
    assert table.shape == (len(set(range(len(parent))) - set(parent)), int(tree.depth.max()) + 1)
    assert set(table.flatten().tolist()) - {-1} == set(range(len(parent)))
    for path in table.tolist():
        real = [node for node in path if node >= 0]
        assert path == real + [-1] * (len(path) - len(real))
        assert tree.path(real[-1]) == real


@given(parents(), st.integers(0, 2**14))
@settings(max_examples=60, deadline=None)
def test_prune_keeps_what_it_says(parent, bits):
    n = len(parent)
    q = torch.rand(n, 3)
    tree = Tree.of(torch.arange(n) + 100, torch.tensor(parent), q[:, 0], q)
    wanted = {node for node in range(n) if bits >> node & 1} | {0}
    closed = set().union(*(ancestors(parent, node) for node in wanted))
    if closed != wanted:
        with pytest.raises(ConfigError, match="without its parent"):
            tree.prune(torch.tensor(sorted(wanted)))
    kept = sorted(closed)
    small = tree.prune(torch.tensor(kept))
    assert (small.ids - 100).tolist() == kept
    assert [kept[above] if above >= 0 else -1 for above in small.parent.tolist()] == [parent[node] for node in kept]
    assert torch.equal(small.q_full, q[kept])
    assert torch.equal(small.q_node, q[kept, 0])
    assert torch.equal(small.mask(), tree.mask()[kept][:, kept])


@given(parents(), st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_a_greedy_walk_follows_the_best_token(parent, seed):
    r = torch.Generator().manual_seed(seed)
    n, v = len(parent), 3
    ids = torch.randint(v, (n,), generator=r)
    tree, best = Tree.of(ids, torch.tensor(parent)), torch.randint(v, (n,), generator=r)
    walk = accept_tree(tree, torch.nn.functional.one_hot(best, v).double(), generator=r)
    node, path = 0, []
    while hits := [kid for kid in tree.children(node).tolist() if ids[kid] == best[node]]:
        node = hits[0]
        path.append(node)
    assert walk.path.tolist() == path
    assert int(walk.next) == int(best[node])


@pytest.mark.parametrize(
    ("ids", "parent", "depth", "error"),
    [
        ([], [], [], ShapeError),
        ([1, 2], [-1], [0], ShapeError),
        ([1, 2], [-1, -1], [0, 0], ConfigError),
        ([1, 2], [0, -1], [0, 0], ConfigError),
        ([1, 2, 3], [-1, 2, 0], [0, 2, 1], ConfigError),
        ([1, 2], [-1, 1], [0, 1], ConfigError),
        ([1, 2], [-1, 5], [0, 1], ConfigError),
        ([1, 2], [-1, 0], [0, 2], ConfigError),
        ([1, 2], [-1, 0], [1, 2], ConfigError),
    ],
)
def test_what_is_no_tree(ids, parent, depth, error):
    with pytest.raises(error):
        Tree(torch.tensor(ids, dtype=torch.int64), torch.tensor(parent, dtype=torch.int32), torch.tensor(depth).int())


def test_parts_that_do_not_fit():
    good = torch.tensor([1, 2]), torch.tensor([-1, 0]), torch.tensor([0, 1])
    with pytest.raises(ShapeError, match="int64"):
        Tree(good[0].int(), *good[1:])
    with pytest.raises(ShapeError, match="parent"):
        Tree(good[0], good[1].float(), good[2])
    with pytest.raises(ShapeError, match="q_node"):
        Tree(*good, torch.zeros(3))
    with pytest.raises(ShapeError, match="q_full"):
        Tree(*good, None, torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="keep"):
        Tree(*good).prune(torch.tensor([True]))
    assert Tree(*good).parent.dtype == torch.int32


def test_a_chain_is_a_tree_without_branches():
    tree = Tree.chain(torch.tensor([7, 8, 9]))
    assert tree.parent.tolist() == [-1, 0, 1]
    assert tree.retrieve().tolist() == [[0, 1, 2]]
    assert torch.equal(tree.mask(), torch.ones(3, 3, dtype=torch.bool).tril())


def brute(table, root, depth, top_k, n):
    """The same growth over tuples, for tables without ties."""
    logp = table.double().log_softmax(-1)
    frontier, found = [((root,), 0.0)], []
    for _ in range(depth):
        made = []
        for path, cum in frontier:
            ids = logp[path[-1]].argsort(descending=True)[:top_k].tolist()
            made += [((*path, x), cum + float(logp[path[-1], x])) for x in ids]
        found += made
        frontier = sorted(made, key=lambda item: -item[1])[:top_k]
    return {path for path, _ in sorted(found, key=lambda item: -item[1])[: n - 1]} | {(root,)}


@pytest.mark.parametrize(
    ("depth", "top_k", "n"), [(0, 3, 5), (1, 2, 9), (3, 2, 6), (4, 3, 20), (3, 9, 1), (2, 50, 200)]
)
def test_growth_against_plain_enumeration(depth, top_k, n):
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(depth), dtype=torch.float64)
    calls = []
    tree = Tree.from_topk(lambda paths: (calls.append(paths), table[paths[:, -1]])[1], depth, top_k, n, root=4)
    paths = {tuple(tree.ids[tree.path(node)].tolist()) for node in range(len(tree))}
    assert paths == brute(table, 4, depth, min(top_k, 9), n)
    assert len(tree) == len(paths) <= n
    assert len(calls) == (depth if n > 1 else 0)
    assert all(int(calls[i][0, 0]) == 4 and calls[i].shape[1] == i + 1 for i in range(len(calls)))
    share = table.softmax(-1)
    assert tree.q_node is not None
    for node in range(1, len(tree)):
        above = int(tree.ids[int(tree.parent[node])])
        assert float(tree.q_node[node]) == pytest.approx(float(share[above, tree.ids[node]]))


def test_ties_stay_with_the_parent_and_the_smaller_id():
    """A drafter that is certain makes child and parent equally likely."""
    sure = torch.full((4, 4), float("-inf"))
    sure[:, 2] = 0.0
    tree = Tree.from_topk(lambda paths: sure[paths[:, -1]], 5, 3, 4)
    assert tree.ids.tolist() == [0, 2, 2, 2]
    assert tree.parent.tolist() == [-1, 0, 1, 2]
    flat = Tree.from_topk(lambda paths: torch.zeros(len(paths), 6), 2, 2, 4)
    assert flat.ids.tolist() == [0, 0, 1, 0]
    assert flat.parent.tolist() == [-1, 0, 0, 1]


@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 5), st.integers(1, 25))
@settings(max_examples=50, deadline=None)
def test_growth_is_closed_and_bounded_whatever_the_ties(seed, depth, top_k, n):
    table = torch.randint(3, (5, 5), generator=torch.Generator().manual_seed(seed)).float()
    table[table == 0] = float("-inf")
    table[:, 0] = 0.0
    grown = [Tree.from_topk(lambda paths: table[paths[:, -1]], depth, top_k, n, root=torch.tensor([1])) for _ in "ab"]
    assert torch.equal(grown[0].ids, grown[1].ids)
    assert torch.equal(grown[0].parent, grown[1].parent)
    tree = grown[0]
    assert len(tree) <= n
    assert int(tree.depth.max()) <= depth
    paths = [tuple(tree.ids[tree.path(node)].tolist()) for node in range(len(tree))]
    assert len(set(paths)) == len(paths)
    likely = tree.q_node
    assert likely is not None
    for kids in (tree.children(node).tolist() for node in range(len(tree))):
        assert len(kids) <= top_k
        assert all(likely[a] >= likely[b] for a, b in itertools.pairwise(kids))


def test_growth_with_bounds_that_are_none():
    for depth, top_k, n in ((-1, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ConfigError, match="accepted"):
            Tree.from_topk(lambda paths: torch.zeros(len(paths), 2), depth, top_k, n)
