"""The workshop: a world whose answers follow from the seed, a solver that errs, strategies that must help it."""

import json
import random
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from remnant.cli import app
from remnant.memory import Message, ScriptError, structured
from remnant.memory.strategies.reasoningbank import Lessons, ReasoningBank
from remnant.testbed.agents.mind import Mind
from remnant.testbed.agents.solver import solve, understand
from remnant.testbed.agents.stream import NONE, RAW, Settings, Trajectories, run_stream
from remnant.testbed.agents.trial import compare, entrants, poison, rate, scale
from remnant.testbed.agents.world import ACTIONS, ALARM, STAGES, TRIES, Run, World

FEW = Settings(tasks=20)
STREAM = Settings()
SEEDS = range(3)


class Sure(random.Random):
    """No slip, nothing overlooked."""

    def random(self) -> float:
        return 0.99


def _first(world: World, machines: int = 1):
    return next(task for task in world.tasks(50) if len(task.machines) == machines)


def test_all_follows_from_the_seed():
    assert World(1).tasks(20) == World(1).tasks(20)
    assert World(1).tasks(20) != World(2).tasks(20)
    assert World(1).rules(0, 0) == World(1).rules(0, 99)
    drifted = World(1, drift_at=5)
    assert drifted.rules(1, 4) == World(1).rules(1, 4) != drifted.rules(1, 5)
    assert drifted.rules(0, 4) == drifted.rules(0, 5)


def test_a_run_is_done_by_the_right_order_only():
    world = World(0)
    task = _first(world)
    rules = world.rules(task.machines[0][0], 0)
    run = Run(world, task, 0)
    assert run.act(rules.order[1]) == "nothing happens"
    assert [run.act(action) for action in rules.order][-1] == "it runs, done"
    assert run.done
    assert run.at is None


def test_time_is_up_sooner_after_an_alarm():
    world = World(0)
    task = _first(world)
    rules = world.rules(task.machines[0][0], 0)
    run, wrong = Run(world, task, 0), next(a for a in ACTIONS if a not in rules.order and a not in rules.traps)
    assert "alarm" in run.act(next(iter(rules.traps)))
    for _ in range(TRIES - 1 - ALARM):
        assert run.at == 0
        run.act(wrong)
    assert run.at is None
    assert not run.done


def test_notes_that_tell_the_order_are_followed_and_others_are_not():
    world = World(0)
    task = _first(world)
    kind, name = task.machines[0]
    rules = world.rules(kind, 0)
    notes = f"- [a1 | strategy | from agent] The {name} works like this: {', then '.join(rules.order)}"
    run = Run(world, task, 0)
    assert solve(run, notes, Sure(0), lambda line: None) == {"a1"}
    assert run.done
    other = Run(world, task, 0)
    assert solve(other, notes.replace(name, "teapot"), Sure(0), lambda line: None) == set()


def test_reading_takes_warnings_and_plans_apart():
    notes = "- [a | x] The kiln begins like this: Pull the lever, then turn the dial. On the kiln never open the valve"
    known = understand(notes, Sure(0))[0]
    assert known.plans == [("a", ["pull the lever", "turn the dial"])]
    assert known.deadly == {"open the valve"}
    assert understand("", Sure(0)) == {}


def test_the_mind_knows_only_the_transcript_and_refuses_shapes_it_does_not_know():
    seen = "| task: start the kiln\n| 1. assistant: on the kiln: pull the lever -> good, stage 1 of 3"
    lessons = structured(Mind(errs=0.0), [Message("user", seen)], Lessons)
    assert [lesson.content for lesson in lessons.items] == ["The kiln begins like this: pull the lever"]
    assert structured(Mind(), [Message("user", "nothing")], Lessons).items == ()
    with pytest.raises(ScriptError, match="wish for"):
        Mind().generate([Message("user", seen)], schema={"properties": {"unheard": {}}})


def test_same_seed_same_stream():
    once, twice = run_stream("tim", 3, FEW), run_stream("tim", 3, FEW)
    assert once == twice
    assert run_stream("tim", 4, FEW).done != once.done


@pytest.fixture(scope="module")
def table():
    names = ("reasoningbank", "facts", "tim", "arcmemo", "reme")
    chosen = {name: make for name in names for make in entrants([name], {}).values() if name != RAW}
    return compare({RAW: Trajectories, **chosen}, SEEDS, STREAM)


@pytest.mark.parametrize("name", ["reasoningbank", "facts", "tim", "arcmemo", "reme", RAW])
def test_memory_helps(table, name: str):
    assert table[name]["gain"]["low"] > 0.1
    assert table[name]["late"]["mean"] > table[name]["success"]["mean"]  # it learns: the second half is better
    assert table[NONE]["success"]["mean"] < 0.35


@pytest.mark.parametrize("name", ["facts", "tim", "arcmemo", "reme"])
def test_what_is_distilled_helps_more_than_what_happened(table, name: str):
    assert table[name]["late"]["mean"] > table[RAW]["late"]["mean"] + 0.05


def test_reasoningbank_beats_raw_trajectories_at_equal_tokens_and_at_one_experience_each(table):
    more = compare({"three": lambda: ReasoningBank(3)}, SEEDS, STREAM)["three"]
    assert more["success"]["low"] > table[RAW]["success"]["mean"]
    one = compare({RAW: Trajectories}, SEEDS, replace(STREAM, k=1))[RAW]
    assert table["reasoningbank"]["success"]["mean"] > one["success"]["mean"] + 0.05


def test_the_best_of_four_rollouts_beats_the_first_on_the_same_memory():
    found = scale(lambda: ReasoningBank(3), SEEDS, 4, FEW)
    assert found["gain"]["low"] > 0.0
    assert found["best"]["mean"] > found["one"]["mean"]


@pytest.mark.parametrize("name", ["reasoningbank", "facts", "tim"])
def test_poison_is_put_away_and_does_not_lower_success_below_no_memory(name: str):
    found = compare({name: entrants([name], {})[name]}, range(2), Settings(prepare=poison))
    assert found[name]["gain"]["low"] > 0.0
    assert all(stats["quarantined"] >= 16 for stats in found[name]["memory"])  # all of the web's, before any harm


def test_rate_has_the_mean_inside_its_interval():
    found = rate([[0, 1, 1, 1], [1, 1, 0, 1]])
    assert found.low < found.mean == 0.75 < found.high
    assert rate([[1.0] * 5]).low == 1.0


def test_raw_keeps_whole_trajectories():
    outcome = run_stream(Trajectories(), 0, Settings(tasks=5))
    assert sum(value for key, value in outcome.stats.items() if key in ("active", "quarantined")) == 5


def test_the_command():
    done = CliRunner().invoke(
        app, ["testbed", "agents", "--strategy", "facts", "--tasks", "6", "--seeds", "1", "--json"]
    )
    assert done.exit_code == 0
    assert set(json.loads(done.stdout)) == {NONE, RAW, "facts"}
    scaled = CliRunner().invoke(
        app, ["testbed", "agents", "--strategy", "facts", "--tasks", "3", "--seeds", "1", "--rollouts", "2", "--json"]
    )
    assert json.loads(scaled.stdout)["facts"]["n"] == 2
    assert STAGES == 3
