"""Counts of a run and the figures derived from them."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from remnant.errors import ConfigError
from remnant.speculative import SpecStats, block_efficiency, mbsu, speedup


def test_figures_of_the_literature():
    assert round(block_efficiency(0.7, 5), 3) == 2.941
    assert block_efficiency(1.0, 4) == 5
    assert block_efficiency(0.0, 4) == 1
    assert mbsu(3.0, 0.1, 5) == 2.0
    assert mbsu(1.0, 0.0, 4) == 1.0
    assert speedup(3.0, 10.0, 1.0, 12.0, 3.0, 5) == 1.5


def test_counts_by_place():
    stats = SpecStats(target_bytes=100, draft_bytes=10)
    stats.block(3, 2, 3)
    stats.block(1, 0, 1)
    stats.block(3, 3, 4)
    assert (stats.passes, stats.proposed, stats.accepted, stats.emitted) == (3, 7, 5, 8)
    assert stats.by_position == [2, 2, 1]
    assert stats.proposed_by_position == [3, 2, 2]
    assert stats.reached == [3, 2, 2]
    assert stats.recent == pytest.approx([2 / 3, 1.0, 0.5])
    assert stats.block_efficiency == pytest.approx(8 / 3)
    assert stats.acceptance == pytest.approx(5 / 7)
    assert stats.mbsu(3) == pytest.approx(8 / 3 / 1.3)
    assert stats.to_dict()["acceptance"] == stats.acceptance


def test_a_tree_counts_places_by_its_depth():
    stats = SpecStats()
    stats.block(9, 1, 2, depth=3)
    assert (stats.proposed, stats.proposed_by_position, stats.by_position) == (9, [1, 1, 1], [1, 0, 0])
    assert stats.reached == [1, 1, 0]


def test_recent_forgets():
    stats = SpecStats()
    for _ in range(100):
        stats.block(1, 1, 2)
    for _ in range(100):
        stats.block(1, 0, 1)
    assert stats.recent[0] < 0.01 < stats.acceptance == 0.5


def test_nothing_counted():
    assert SpecStats().acceptance == SpecStats().block_efficiency == 0.0
    with pytest.raises(ConfigError, match="target_bytes"):
        SpecStats().mbsu(2)


@pytest.mark.parametrize("counts", [(1, 2, 3), (2, -1, 1), (2, 1, -1)])
def test_counts_that_do_not_fit(counts):
    with pytest.raises(ConfigError, match="fit"):
        SpecStats().block(*counts)
    with pytest.raises(ConfigError, match="fit"):
        SpecStats().block(2, 1, 2, depth=3)


def test_figures_of_nonsense():
    for call in (lambda: block_efficiency(1.5, 2), lambda: mbsu(2, -1, 2), lambda: speedup(2, 0, 1, 1, 1, 1)):
        with pytest.raises(ConfigError, match="accepted"):
            call()
