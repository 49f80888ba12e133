"""What a budget buys, and the best of what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.kinetics import (
    Block,
    Dense,
    Evict,
    Option,
    Purse,
    Shape,
    TopK,
    afford,
    best,
    coverage,
    efficient,
    eflops,
    exchange,
    frontier,
    longest,
    measured,
    most_trials,
    read_measurements,
)

SHAPE = Shape.uniform("m", parameters=1000, layers=3, heads=8, kv_heads=2, dim=4)


@pytest.mark.parametrize("policy", [Dense(), Block(64, 16, 16), Evict(64)])
def test_what_is_bought_is_the_most(policy: Any):
    purse = Purse(5e9, 40)
    n = most_trials(purse, SHAPE, policy, 70)
    assert n > 1
    assert purse.pays(SHAPE, 70, n, policy)
    assert not purse.pays(SHAPE, 70, n + 1, policy)
    y, limit = longest(purse, SHAPE, policy, 3)
    assert limit == "budget"
    assert purse.pays(SHAPE, y, 3, policy)
    assert not purse.pays(SHAPE, y + 1, 3, policy)
    short = Shape("m", 1000, SHAPE.groups, positions=100)
    assert longest(purse, short, policy, 3) == (60, "positions")
    assert most_trials(Purse(1, 40), SHAPE, policy, 70) == 0
    assert longest(Purse(1, 40), SHAPE, policy, 3)[0] == 0


def test_options_and_those_that_nothing_beats():
    small = Shape("s", 1000, SHAPE.groups, positions=2000)
    by_length, by_trials = afford(Purse(5e9, 40), [small], [Dense(), TopK(16)], [100, 1961], [1, 8])
    assert {(one.policy, one.y) for one in by_length} == {("dense", 100), ("topk:16", 100)}
    assert exchange(by_length, [100, 9])[100] == [one for one in by_length if one.policy == "dense"]
    assert exchange(by_length, [100, 9])[9] == []
    assert [one.policy for one in exchange(by_length[1:], [100])[100]] == ["topk:16"]
    options = [*by_length, *by_trials]
    kept = [one for one, ahead in zip(options, frontier(options), strict=True) if ahead]
    assert kept
    for one in options:
        beaten = any(b.y >= one.y and b.N >= one.N and (b.y, b.N) != (one.y, one.N) for b in options)
        assert (one in kept) != beaten


def test_the_best_of_what_was_measured():
    def made(N: int, accuracy: float | None) -> Option:
        cost = eflops(SHAPE, 10, 100, N, Dense())
        return Option("m", "dense", 100, N, cost, 0.0, "measured", accuracy)

    options = [made(1, 0.2), made(2, 0.5), made(3, 0.5), made(4, 0.9), made(1, None)]
    assert best(options, options[2].cost.eflops) is options[1]
    assert best(options, 1.0) is None
    assert efficient(options[:4]) == [True, True, False, True]


def test_measurements_are_read_and_priced(tmp_path: Path):
    table = tmp_path / "counts.csv"
    rows = ["m,dense,100,1,4,1", "m,dense,100,2,6,3", "other,dense,100,1,4,4"]
    table.write_text("\n".join(["model,policy,y,problem,n,c", *rows]))
    read = read_measurements(table)
    assert read[0].most == 4
    assert read[0].at(2) == pytest.approx((coverage(4, 1, 2) + coverage(6, 3, 2)) / 2)
    found = measured(Purse(1e12, 10), [SHAPE], read, [1, 2, 64])
    assert [one.N for one in found] == [1, 2, 4]  # 64 is beyond the samples; 4 is all of them
    assert [one.accuracy for one in found] == [read[0].at(N) for N in (1, 2, 4)]
    given = tmp_path / "given.json"
    given.write_text(json.dumps([{"model": "m", "policy": "topk:8", "y": 50, "N": 3, "accuracy": 0.25}]))
    (one,) = measured(Purse(1, 10), [SHAPE], read_measurements(given), [1])
    assert (one.policy, one.y, one.N, one.accuracy) == ("topk:8", 50, 3, 0.25)
    assert one.cost == eflops(SHAPE, 10, 50, 3, TopK(8))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model,policy,y,N\nm,dense,1,1",
        "model,policy,y,N,accuracy\nm,dense,1,1,1.5",
        "model,policy,y,N,accuracy\nm,dense,1,1,nan",
        "model,policy,y,N,accuracy\nm,dense,0,1,0.5",
        "model,policy,y,N,accuracy\nm,dense,1,1,0.5\nm,dense,1,1,0.6",
        "model,policy,y,N,accuracy\nm,best,1,1,0.5",
        "model,policy,y,N,accuracy\nm,dense,1,1,0.5,7",
        "model,policy,y,n,c\nm,dense,1,4,5",
        "model,policy,y,n,c,problem\nm,dense,1,4,1,p\nm,dense,1,4,1,p",
    ],
)
def test_tables_with_faults_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_measurements(path)
    (tmp_path / "table.json").write_text('{"rows": 1}')
    with pytest.raises(ConfigError, match="no rows"):
        read_measurements(tmp_path / "table.json")
