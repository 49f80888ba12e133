"""Acceptance, trees and tilts name what is wrong with their input instead of drawing a token from it."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from remnant.errors import ConfigError, ShapeError  # noqa: E402
from remnant.speculative import Tilt, Tree, accept_chain, accept_tree, tilt_geometric, tilt_kl, tilt_step  # noqa: E402

P = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]])
Q = torch.tensor([[[0.2, 0.2, 0.6]]])
IDS = torch.tensor([[1]])
NAN = math.nan

NO_DISTRIBUTIONS = {
    "NaN": torch.full((3,), NAN),
    "infinite": torch.tensor([math.inf, 0.0, 0.0]),
    "no mass": torch.zeros(3),
    "logs": Q[0, 0].log(),
    "negative, though of sum 1": torch.tensor([1.5, -0.5, 0.0]),
}


@pytest.mark.parametrize("row", NO_DISTRIBUTIONS.values(), ids=NO_DISTRIBUTIONS)
def test_what_is_no_distribution(row):
    with pytest.raises(ShapeError, match="target"):
        accept_chain(IDS, torch.stack([row, row])[None], Q)
    with pytest.raises(ShapeError, match="draft"):
        accept_chain(IDS, P, row[None, None])
    tree = Tree.of(torch.tensor([0, 1]), torch.tensor([-1, 0]), q_full=torch.stack([row, row]))
    with pytest.raises(ShapeError, match="target"):
        accept_tree(tree, torch.stack([row, row]))
    for mode in ("iid", "without_replacement"):
        with pytest.raises(ShapeError, match="draft"):
            accept_tree(tree, P[0], mode)


def test_a_draft_distribution_behind_a_rows_length_is_not_read():
    q = torch.cat([Q, torch.full((1, 1, 3), NAN)], 1)
    p = torch.cat([P, torch.full((1, 1, 3), NAN)], 1)
    done = accept_chain(torch.tensor([[1, -9]]), p, q, torch.zeros(1, 3), len=torch.tensor([1]))
    assert done.n.tolist() == [1]


@pytest.mark.parametrize("u", [NAN, -0.1, 1.5, math.inf])
def test_uniforms_that_are_none(u):
    with pytest.raises(ShapeError, match="uniforms"):
        accept_chain(IDS, P, Q, torch.tensor([[u, 0.0]]))
    with pytest.raises(ShapeError, match="uniforms"):
        accept_chain(IDS, P, Q, torch.tensor([[0.0, u]]))
    with pytest.raises(ShapeError, match="uniforms"):
        accept_tree(Tree.of(torch.tensor([0, 1]), torch.tensor([-1, 0])), P[0], u=torch.tensor([0.0, u]))


def test_lengths_that_are_no_integers():
    with pytest.raises(ShapeError, match=r"draft lengths of torch\.float32"):
        accept_chain(IDS, P, len=torch.tensor([0.5]))


def test_tokens_and_vocabularies_of_a_tree():
    parent = torch.tensor([-1, 0])
    with pytest.raises(ShapeError, match=r"\[-1\]; accepted: 0 to 2"):
        accept_tree(Tree.of(torch.tensor([0, -1]), parent), P[0])
    wider = Tree.of(torch.tensor([0, 1]), parent, q_full=torch.full((2, 4), 0.25))
    with pytest.raises(ShapeError, match="q_full over 4 tokens"):
        accept_tree(wider, P[0], "iid")


def test_nodes_that_are_not_there():
    tree = Tree.of(torch.tensor([0, 1, 2]), torch.tensor([-1, 0, 1]))
    for i in (-1, 3):
        for ask in (tree.children, tree.path, lambda i: tree.prune(torch.tensor([0, i]))):
            with pytest.raises(ConfigError, match=f"node {i}; accepted: 0 to 2"):
                ask(i)
    with pytest.raises(ShapeError, match=r"keep of torch\.float32"):
        tree.prune(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("bad", [NAN, math.inf, -1.0])
def test_numbers_of_a_step(bad):
    z = torch.zeros(3)
    with pytest.raises(ConfigError, match="eta"):
        tilt_step(z, z, bad)
    with pytest.raises(ConfigError, match="T"):
        tilt_step(z, z, 1.0, T=bad)
    with pytest.raises(ConfigError, match="eta"):
        Tilt("exact", eta=bad)


@pytest.mark.parametrize("bad", [[NAN, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3])
def test_logits_that_are_none(bad):
    z, wrong = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 2.0], bad])
    for a, b in ((z, wrong), (wrong, z)):
        for tilt in (tilt_step, tilt_geometric, tilt_kl):
            with pytest.raises(ShapeError, match="logits with NaN"):
                tilt(a, b, 0.5)


def test_no_rows_are_no_fault():
    none = torch.zeros(0, 3)
    assert tilt_geometric(none, none, 0.5).shape == (0, 3)
    assert tilt_kl(none, none, 0.5)[1].shape == (0,)
    assert accept_chain(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 3, 5)).n.shape == (0,)
