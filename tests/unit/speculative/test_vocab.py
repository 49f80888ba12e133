"""The map, the head, the choice of k and mixtures: hand-computed answers, the paper's guarantee, every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from remnant.errors import ConfigError, RemnantError, ShapeError
from remnant.speculative import VocabMap, choose_k, trim_head
from remnant.speculative.vocab import Domain, StepCost, geometric_grid, keep_for


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("counts", "k", "always", "keep"),
    [
        ([0, 5, 1, 5], 2, (), [1, 3]),
        ([0, 5, 1, 5], 1, (), [1]),  # of equal counts the lower id
        ([0, 5, 1, 5], 2, (0,), [0, 1]),
        ([0, 0, 7, 0, 0], 3, (), [0, 1, 2]),  # filled from below
        ([0, 0, 7, 0, 0], 3, (4, 4), [0, 2, 4]),
        ([3, 2, 1], 3, (2,), [0, 1, 2]),
    ],
)
def test_kept_by_counts(counts: list[int], k: int, always: tuple[int, ...], keep: list[int]):
    assert VocabMap.from_counts(torch.tensor(counts), k, always).keep.tolist() == keep


def test_tables_and_ids():
    vmap = VocabMap.from_ids([1, 3, 4], 6)
    tables = vmap.to_tensors()
    assert tables["d2t"].tolist() == [1, 2, 2]
    assert tables["d2t"].dtype == torch.int64
    assert tables["t2d"].tolist() == [False, True, False, True, True, False]
    assert vmap.to_target(ids(2, 0)).tolist() == [4, 1]
    assert vmap.to_draft(torch.tensor([[0, 1], [4, 99], [-1, 5]])).tolist() == [[-1, 0], [2, -1], [-1, -1]]
    assert (vmap.to_target(1), vmap.to_draft(3), vmap.to_draft(2)) == (3, 1, -1)
    assert vmap.to_draft(vmap.to_target(torch.arange(3))).tolist() == [0, 1, 2]


def test_scatter_and_coverage():
    vmap = VocabMap.from_ids([1, 3], 5)
    logits = torch.tensor([[[0.5, -2.0]]], dtype=torch.bfloat16)
    full = vmap.scatter(logits)
    assert full.shape == (1, 1, 5)
    assert full.dtype == torch.bfloat16
    assert full[0, 0].tolist() == [-torch.inf, 0.5, -torch.inf, -2.0, -torch.inf]
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    assert vmap.coverage(p).tolist() == pytest.approx([0.6, 0.0])
    # Gradients reach the rows that were scattered.
    x = torch.zeros(2, requires_grad=True)
    vmap.scatter(x).exp().sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]


def test_trimmed_twice():
    once = VocabMap.from_ids([2, 5, 7, 9], 12)
    twice = once.compose(VocabMap.from_ids([0, 2], 4))
    assert twice.keep.tolist() == [2, 7]
    assert twice.vocab_size == 12
    with pytest.raises(ConfigError, match="a map over 5 tokens; accepted: one over 4"):
        once.compose(VocabMap.from_ids([0], 5))


@pytest.mark.parametrize("seed", range(8))
def test_the_guarantee(seed: int):
    """Acceptance falls by no more than the smaller of what p and q put outside, whatever p, q and the kept set are."""
    r = torch.Generator().manual_seed(seed)
    for case in range(250):
        v = int(torch.randint(2, 40, (), generator=r))
        sharp = [0.3, 1.0, 4.0, 12.0][case % 4]
        p, q = torch.softmax(torch.randn(2, v, generator=r, dtype=torch.float64) * sharp, -1)
        k = int(torch.randint(1, v + 1, (), generator=r))
        vmap = VocabMap.from_ids(torch.randperm(v, generator=r)[:k].sort().values, v)
        logits = q.log()[vmap.keep]
        trimmed = torch.softmax(vmap.scatter(logits), -1)
        assert float(trimmed.sum()) == pytest.approx(1.0)
        before, after = (float(torch.minimum(p, x).sum()) for x in (q, trimmed))
        lost = min(1 - float(vmap.coverage(p)), 1 - float(vmap.coverage(q)))
        assert after >= before - lost - 1e-12


def test_what_is_emitted_is_the_targets_distribution():
    """Accept or correct with a trimmed q: p to machine precision, by enumeration."""
    r = torch.Generator().manual_seed(3)
    for k in (1, 4, 11, 12):
        p, q = torch.softmax(torch.randn(2, 12, generator=r, dtype=torch.float64) * 3, -1)
        vmap = VocabMap.from_counts(torch.rand(12, generator=r), k)
        q = torch.softmax(vmap.scatter(q.log()[vmap.keep]), -1)
        accepted, rest = torch.minimum(p, q), (p - q).clamp(min=0)
        emitted = accepted + (1 - accepted.sum()) * rest / rest.sum().clamp(min=1e-300)
        assert float((emitted - p).abs().max()) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
def test_trimmed_head(bias: bool):
    head = nn.Linear(8, 6, bias=bias).to(torch.bfloat16).requires_grad_(False).eval()
    vmap = VocabMap.from_ids([0, 4, 5], 6)
    small = trim_head(head, vmap)
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    assert torch.equal(small(x), head(x)[..., vmap.keep])
    assert (small.out_features, small.weight.requires_grad, small.training) == (3, False, False)
    assert small.weight.data_ptr() != head.weight.data_ptr()
    assert (small.bias is None) is not bias


class Packed(nn.Linear):
    """As quantisers leave a head."""

    def __init__(self) -> None:
        super().__init__(8, 6, bias=False)
        self.weight = nn.Parameter(torch.zeros(24, 1, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (nn.Linear(8, 5), "a head of 5 rows; accepted: 6"),
        (Packed(), "a head of torch.uint8"),
        (nn.Embedding(6, 8), "a head of type Embedding"),
        (None, "a head of type NoneType"),
    ],
)
def test_heads_that_cannot_be_trimmed(head: Any, said: str):
    with pytest.raises(RemnantError, match=said):
        trim_head(head, VocabMap.from_ids([0, 1], 6))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: VocabMap.from_counts(torch.ones(4), 0), "k 0 with a vocabulary of 4; accepted: 1 to 4"),
        (lambda: VocabMap.from_counts(torch.ones(4), 5), "k 5"),
        (lambda: VocabMap.from_counts(torch.ones(4), cast("Any", 2.5)), r"k 2\.5"),
        (lambda: VocabMap.from_ids(cast("Any", ["a"]), 5), "accepted: integers"),
        (lambda: VocabMap.from_ids([0], 2).to_target(torch.tensor([True])), r"draft ids of torch\.bool"),
        (lambda: VocabMap.from_ids([0], 2).to_target(torch.tensor([0.5])), r"draft ids of torch\.float32"),
        (lambda: VocabMap.from_ids([0], 2).to_draft(torch.tensor([0.5])), r"target ids of torch\.float32"),
        (lambda: VocabMap.from_counts(torch.ones(4), 2, (4,)), "always-kept ids 4 to 4; accepted: 0 to 3"),
        (lambda: VocabMap.from_counts(torch.ones(4), 1, (0, 1)), "at least 2"),
        (lambda: VocabMap.from_counts(torch.tensor([1.0, -1.0]), 1), "negative or not finite"),
        (lambda: VocabMap.from_counts(torch.tensor([1.0, torch.nan]), 1), "negative or not finite"),
        (lambda: VocabMap.from_counts(torch.ones(2, 2), 1), r"accepted: numbers \[V\]"),
        (lambda: VocabMap.from_ids([3, 1], 5), "kept ids 3, 1 at 0; accepted: ids that ascend, each once"),
        (lambda: VocabMap.from_ids([1, 1], 5), "kept ids 1, 1 at 0"),
        (lambda: VocabMap.from_ids([1, 5], 5), "kept id 5; accepted: 0 to 4"),
        (lambda: VocabMap.from_ids([-1, 2], 5), "kept id -1"),
        (lambda: VocabMap.from_ids([], 5), "no kept ids"),
        (lambda: VocabMap.from_ids(torch.rand(3), 5), "kept ids of torch.float32"),
        (lambda: VocabMap.from_ids([0], 2).to_target(1), "draft ids 1 to 1; accepted: 0 to 0"),
        (lambda: VocabMap.from_ids([0], 2).scatter(torch.zeros(2)), r"accepted: float \[..., 1\]"),
        (lambda: VocabMap.from_ids([0], 2).scatter(torch.zeros(1, dtype=torch.int64)), "torch.int64"),
        (lambda: VocabMap.from_ids([0], 2).coverage(torch.zeros(3)), r"accepted: \[..., 2\]"),
    ],
)
def test_refusals(make: Any, said: str):
    with pytest.raises(RemnantError, match=said):
        make()


def test_save_and_load(tmp_path: Path):
    vmap = VocabMap.from_ids([1, 3, 4], 6)
    vmap.save(tmp_path / "map.safetensors")
    found = VocabMap.load(tmp_path / "map.safetensors")
    assert (found.keep.tolist(), found.vocab_size) == ([1, 3, 4], 6)
    assert [path.name for path in tmp_path.iterdir()] == ["map.safetensors"]


GOOD = {"d2t": ids(1, 2), "t2d": torch.tensor([False, True, False, True])}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({}, "without the table 'd2t'"),
        ({"t2d": GOOD["t2d"]}, "without the table 'd2t'"),
        ({"d2t": GOOD["d2t"]}, "no table 't2d' confirms"),
        ({**GOOD, "t2d": torch.tensor([True, True, False, True])}, "d2t names 2 tokens, t2d marks 3"),
        ({**GOOD, "t2d": torch.tensor([True, True, False, False])}, "t2d marks 2, but others"),
        ({**GOOD, "d2t": ids(1, 0)}, "kept ids 1, 1 at 0"),  # two drafts for one token
        ({**GOOD, "d2t": ids(3, 0)}, "kept ids 3, 1 at 0"),  # out of order
        ({**GOOD, "d2t": ids(1, 9)}, "kept id 10"),
        ({**GOOD, "t2d": torch.zeros(4)}, "t2d of torch.float32"),
        ({**GOOD, "d2t": torch.zeros(2)}, "d2t of torch.float32"),
    ],
)
def test_maps_that_are_missing_or_inconsistent(tmp_path: Path, tables: dict[str, torch.Tensor], said: str):
    save_file(tables or {"other": ids(0)}, tmp_path / "map.safetensors")
    with pytest.raises((ConfigError, ShapeError), match=said):
        VocabMap.load(tmp_path / "map.safetensors")


def test_files_that_are_no_maps(tmp_path: Path):
    with pytest.raises(ConfigError, match="no map in"):
        VocabMap.load(tmp_path / "absent")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ConfigError, match="no map in"):
        VocabMap.load(tmp_path / "text")


def test_an_untouched_table_is_no_map():
    """`d2t` of zeros, alone: a loader would silently take the first k tokens."""
    with pytest.raises(ConfigError, match="confirms"):
        VocabMap.from_tensors({"d2t": torch.zeros(3, dtype=torch.int64)}, 10)
    t2d = torch.arange(10) < 3
    assert VocabMap.from_tensors({"d2t": torch.zeros(3, dtype=torch.int64), "t2d": t2d}).keep.tolist() == [0, 1, 2]
    assert VocabMap.from_tensors({"d2t": ids(0, 1, 1)}, 10).keep.tolist() == [0, 2, 3]


def test_choose_k_by_hand():
    """Costs 0.1 k, acceptance 0.5, 0.8, 0.9 and one draft: 1.5/1.1, 1.8/1.2, 1.9/1.3."""
    accept = {1: 0.5, 2: 0.8, 3: 0.9}
    k, table = choose_k(ids(6, 3, 1), lambda k: 0.1 * k, accept.__getitem__, [3, 1, 2, 2], num_draft=1)
    assert k == 2
    assert [row["k"] for row in table] == [1, 2, 3]
    assert [row["mbsu"] for row in table] == pytest.approx([1.5 / 1.1, 1.8 / 1.2, 1.9 / 1.3])
    assert [row["coverage"] for row in table] == pytest.approx([0.6, 0.9, 1.0])
    assert choose_k(ids(1, 1, 1), lambda k: 0.0, lambda k: 1.0, [1, 2, 3])[0] == 1  # the smaller of equals


@pytest.mark.parametrize(
    ("scores", "accept", "grid"),
    [(ids(1, 1), 0.5, []), (ids(0, 0), 0.5, [1]), (ids(1, 1), 1.5, [1]), (ids(1, 1), 0.5, [3])],
)
def test_choose_k_refuses(scores: torch.Tensor, accept: float, grid: list[int]):
    with pytest.raises(ConfigError):
        choose_k(scores, lambda k: 0.1, lambda k: accept, grid)


def test_grid():
    grid = geometric_grid(128256, least=300)
    assert grid[0] >= 300
    assert grid[-1] == 128256
    assert all(k % 64 == 0 for k in grid[:-1])
    assert grid == sorted(set(grid))
    assert geometric_grid(10) == [10]
    assert geometric_grid(2048, 2048) == [2048]


def test_cost_of_a_step():
    cost = StepCost(rest=100, row=4, target=1000)
    assert (cost.step(25), cost.ratio(25)) == (200, 0.2)
    with pytest.raises(ConfigError, match="--target"):
        StepCost(100, 4).ratio(25)


def test_floors_of_a_mixture():
    """A text of two tokens against one of many: without a floor the small one loses."""
    large = Domain("large", ids(9, 9, 9, 0, 0, 0))
    small = Domain("small", ids(0, 0, 0, 5, 4, 1))
    assert keep_for([large, small], 2).keep.tolist() == [3, 4]  # each text weighs the same
    assert keep_for([large, small], 3).keep.tolist() == [0, 3, 4]
    floored = [Domain("large", large.scores, 0.6), small]
    both = [floored[0], Domain("small", small.scores, 0.9)]
    assert keep_for(floored, 3).keep.tolist() == [0, 1, 3]
    assert keep_for(both, 4).keep.tolist() == [0, 1, 3, 4]
    with pytest.raises(ConfigError, match=r"k 3 for the floors large 0.6, small 0.9; accepted: at least 4"):
        keep_for(both, 3)
    assert keep_for(floored, 3, always=[1]).keep.tolist() == [0, 1, 3]
    with pytest.raises(ConfigError, match=r"floor 1\.5"):
        Domain("x", ids(1), 1.5)
    with pytest.raises(ConfigError, match="holds no token"):
        Domain("x", ids(0, 0))
