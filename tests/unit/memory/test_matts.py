"""MaTTS: several rollouts, the best answer, one distillation over all of them."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from remnant.errors import ConfigError
from remnant.memory import Memory, Record, Rollout, RolloutsFailed, ScriptedChatModel, Usage, amatts, matts

Make = Callable[..., Memory]

ITEMS = json.dumps({"items": [{"title": "compare", "description": "always", "content": "look twice"}]})


def _agent(memory: Memory, answers: list[Any], verdicts: list[str] | None = None) -> Callable[[Rollout], str]:
    def run(rollout: Rollout) -> str:
        number = rollout.number
        episode = memory.open_episode("add up", group=rollout.group, metadata={"rollout": number})
        memory.observe(episode.id, {"role": "assistant", "content": f"tried way {number}: {rollout.prompt}"})
        if isinstance(answers[number], Exception):
            raise answers[number]
        memory.close_episode(episode.id, verdicts[number] if verdicts else "unknown")  # pyright: ignore
        return answers[number]

    return run


def _best(name: str) -> str:
    return json.dumps({"reason": "its sum is right", "run": name})


def test_all_see_one_state_and_one_distillation_sees_all(make: Make):
    model = ScriptedChatModel([("Several runs at one task follow, each with how it ended", ITEMS)])
    memory = make(strategy="reasoningbank", llm=model)
    seen: list[tuple[int, list[str]]] = []
    inner = _agent(memory, ["7", "8", "7", "9"], ["success", "failure", "success", "failure"])
    latch = threading.Barrier(4, timeout=10)

    def run(rollout: Rollout) -> str:
        latch.wait()  # all four run at once
        memory.add(Record(f"written by {rollout.number} meanwhile", trigger="add up"))
        seen.append((rollout.as_of, [hit.text for hit in memory.recall("add up", as_of=rollout.as_of)]))
        return inner(rollout)

    memory.add(Record("carry the one", trigger="add up"))
    scaled = matts(memory, "add up", run, n=4)
    assert (scaled.result, scaled.reason) == ("7", "its episode ended in success")
    assert len({as_of for as_of, _ in seen}) == 1
    assert all(texts == ["carry the one"] for _, texts in seen)
    assert [attempt.verdict for attempt in scaled.attempts] == ["success", "failure", "success", "failure"]
    assert [(state, error) for _, state, _, error in memory.store.jobs("tenant-a")] == [("done", "")]
    learnt = [r for r in memory.records() if scaled.group in r.payload.get("learnt", {})]
    assert [r.content for r in learnt] == ["compare\nalways\nlook twice"]
    assert len(model.prompts) == 1
    assert all(f"tried way {number}" in model.prompts[0] for number in range(4))


def test_a_rollout_that_raises_is_a_failure_and_does_not_stop_the_others(make: Make):
    memory = make(strategy="reasoningbank")
    scaled = matts(memory, "add up", _agent(memory, [ValueError("tool broke"), "7", "7"]), n=3)
    assert scaled.result == "7"
    assert str(scaled.attempts[0].error) == "tool broke"
    assert scaled.attempts[0].verdict == "failure"
    broken = memory.store.episode("tenant-a", scaled.attempts[0].episode)
    assert broken is not None
    assert (broken.verdict, broken.source) == ("failure", "exception")
    assert [key for key, *_ in memory.store.jobs("tenant-a")] == [scaled.group]


def test_all_that_raise_are_an_error_that_keeps_them_and_still_teach(make: Make):
    memory = make(strategy="reasoningbank")
    with pytest.raises(RolloutsFailed, match=r"all 2 rollouts failed.*tool broke") as caught:
        matts(memory, "add up", _agent(memory, [ValueError("tool broke"), KeyError("x")]), n=2)
    assert [type(attempt.error) for attempt in caught.value.attempts] == [ValueError, KeyError]
    assert len(memory.store.jobs("tenant-a")) == 1


@pytest.mark.parametrize(
    ("answers", "verdicts", "chosen", "why"),
    [
        (["7", " 7", "7"], None, 0, "every attempt gave this answer"),
        (["8", "7", "7"], None, 1, "2 of 3 attempts agree"),
        (["8", "7", "9"], ["failure", "failure", "unknown"], 2, "only sound attempt"),
        (["8", "7", "9"], ["failure", "failure", "failure"], 1, "the model compared them"),
        (["8", "7", "9"], None, 1, "the model compared them: its sum is right"),
    ],
)
def test_the_best(make: Make, answers: list[str], verdicts: list[str] | None, chosen: int, why: str):
    model = ScriptedChatModel([("Decide which run", _best("r2")), ("", json.dumps({"items": []}))])
    memory = make(strategy="facts", llm=model, write="manual")
    scaled = matts(memory, "add up", _agent(memory, answers, verdicts), n=3)
    assert scaled.best.rollout.number == chosen
    assert why in scaled.reason
    assert scaled.usage.calls == ("model" in why)


@pytest.mark.parametrize("reply", ["r9", "no json", _best("r77")])
def test_a_model_that_names_no_run_leaves_the_first_sound_one(make: Make, reply: str):
    memory = make(strategy="facts", llm=ScriptedChatModel([("Decide which run", reply)]), write="manual")
    scaled = matts(memory, "add up", _agent(memory, [ValueError(), "7", "9"]), n=3)
    assert scaled.best.rollout.number == 1
    assert "the model failed" in scaled.reason


def test_cost_is_that_of_rollouts_and_choice(make: Make):
    memory = make(strategy="facts", llm=ScriptedChatModel([("Decide which run", _best("r1"))]), write="manual")
    scaled = matts(memory, "add up", _agent(memory, ["7", "8"]), n=2, usage=lambda _: Usage(1, 10, 5))
    assert scaled.usage.calls == 1
    assert scaled.cost.calls == 3
    assert scaled.cost.input == 20 + scaled.usage.input


def test_a_sequential_group_mends_in_turn_and_answers_with_the_last(make: Make):
    memory = make(strategy="reasoningbank", write="manual")
    prompts: list[str] = []

    def run(rollout: Rollout) -> str:
        prompts.append(rollout.prompt)
        return _agent(memory, ["8", "9", "7"])(rollout)

    scaled = matts(memory, "add up", run, n=3, mode="sequential")
    assert scaled.result == "7"
    assert prompts[0] == "add up"
    assert prompts[1] != prompts[2]
    assert all("add up" in prompt and len(prompt) > 100 for prompt in prompts[1:])


def test_a_selector_of_ones_own_is_checked(make: Make):
    memory = make(write="manual")
    assert matts(memory, "add up", _agent(memory, ["7", "8"]), n=2, selector=lambda _: 1).result == "8"
    with pytest.raises(ConfigError, match=r"selector chose 0.*\[1\]"):
        matts(memory, "add up", _agent(memory, [ValueError(), "8"]), n=2, selector=lambda _: 0)


@pytest.mark.parametrize(("n", "mode"), [(0, "parallel"), (65, "parallel"), (2, "both")])
def test_impossible_settings_are_refused_before_anything_runs(make: Make, n: int, mode: Any):
    memory = make()
    with pytest.raises(ConfigError):
        matts(memory, "add up", _agent(memory, []), n=n, mode=mode)
    assert memory.store.episodes("tenant-a") == []


async def test_async_rollouts_run_side_by_side(make: Make):
    memory = make(strategy="facts", write="manual")
    here = 0
    together = asyncio.Event()

    async def run(rollout: Rollout) -> str:
        nonlocal here
        here += 1
        if here == 3:
            together.set()
        await asyncio.wait_for(together.wait(), 10)
        if rollout.number == 0:
            raise ValueError("lost")
        return "7"

    scaled = await amatts(memory, "add up", run, n=3)
    assert scaled.result == "7"
    assert isinstance(scaled.attempts[0].error, ValueError)


async def test_a_cancelled_group_is_closed(make: Make):
    memory = make(strategy="facts", write="manual")

    async def run(rollout: Rollout) -> str:
        memory.open_episode("add up", group=rollout.group, metadata={"rollout": rollout.number})
        await asyncio.sleep(60)
        return ""

    task = asyncio.create_task(amatts(memory, "add up", run, n=2))
    while len(memory.store.episodes("tenant-a")) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [episode.verdict for episode in memory.store.episodes("tenant-a")] == ["unknown", "unknown"]
    assert all(episode.closed_at is not None for episode in memory.store.episodes("tenant-a"))
