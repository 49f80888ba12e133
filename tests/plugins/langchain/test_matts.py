"""Several runs of one agent: one state of memory, threads of their own, one lesson for all."""

import asyncio
import threading
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from remnant.errors import ConfigError
from remnant.memory import Add, Record, RolloutsFailed
from remnant_langchain import amatts, matts


@tool
def ok() -> str:
    """Works."""
    return "fine"


class Groups:
    """A strategy that keeps how many runs each distillation saw."""

    name, version = "groups", "1"

    def index_text(self, record: Record) -> Any:
        from remnant.memory import IndexText

        return IndexText(record.content, record.content)

    def select(self, query: Any, hits: Any) -> Any:
        return hits

    def render(self, hits: Any) -> str:
        return "MEMORY: " + " ".join(hit.text for hit in hits) if hits else ""

    def distil(self, episodes: Any, context: Any) -> list[Any]:
        return [Add(Record(f"task {len(episodes)} runs {sorted(e.verdict for e in episodes)}", trust="agent"))]


class Numbered:
    """Answers with a number of its own per run; some runs raise."""

    def __init__(self, *answers: Any) -> None:
        self._answers, self._lock = list(answers), threading.Lock()
        self.prompts: list[Any] = []

    def __call__(self, messages: Any) -> Any:
        with self._lock:
            self.prompts.append(messages)
            answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return AIMessage(answer, usage_metadata={"input_tokens": 5, "output_tokens": 1, "total_tokens": 6})


@pytest.fixture(params=["sync", "async"])
def scale(request: pytest.FixtureRequest) -> Any:
    def scale(agent: Any, text: str = "the task", *args: Any, **rest: Any) -> Any:
        given = {"messages": [("user", text)]}
        if request.param == "sync":
            return matts(agent, given, *args, **rest)
        return asyncio.run(amatts(agent, given, *args, **rest))

    return scale


@pytest.mark.parametrize("saver", [None, InMemorySaver])
def test_parallel_runs(make, scale, saver):
    memory = make.memory(strategy=Groups())
    memory.memory.add("task note")
    answers = Numbered("7", "7", RuntimeError("down"), "8")
    agent = make.agent(answers, [], [memory], checkpointer=saver() if saver else None)
    scaled = scale(agent, n=4)
    assert scaled.result["messages"][-1].text == "7"
    assert sum(attempt.error is not None for attempt in scaled.attempts) == 1
    assert (scaled.cost.calls, scaled.cost.input, scaled.cost.output) == (3, 15, 3)
    assert all("task note" in prompt[0].text for prompt in answers.prompts)
    episodes = make.episodes()
    assert sorted(e.metadata["rollout"] for e in episodes) == [0, 1, 2, 3]
    assert {e.group for e in episodes} == {scaled.group}
    threads = {e.metadata.get("thread") for e in episodes}
    assert len(threads) == 4
    assert [attempt.episode for attempt in scaled.attempts] == [
        e.id for e in sorted(episodes, key=lambda e: e.metadata["rollout"])
    ]
    assert memory.memory.flush()
    learnt = [r.content for r in memory.memory.records() if "runs" in r.content]
    assert learnt == ["task 4 runs ['failure', 'unknown', 'unknown', 'unknown']"]


def test_runs_read_one_state_of_memory(make, scale):
    """Another process writes between the runs."""
    memory = make.memory(strategy=Groups())
    memory.memory.add("task note")
    shown: list[str] = []

    def answer(messages: Any) -> str:
        shown.append(messages[0].text)
        memory.memory.add(f"task note {len(shown)}")
        return "7"

    scale(make.agent(answer, [], [memory]), n=3)
    assert set(shown) == {"MEMORY: task note"}


@pytest.mark.parametrize("saver", [None, InMemorySaver])
def test_sequential_runs_go_on_from_one_another(make, scale, saver):
    memory, answers = make.memory(strategy=Groups()), Numbered("first", "second", "third")
    agent = make.agent(answers, [], [memory], checkpointer=saver() if saver else None)
    scaled = scale(agent, n=3, mode="sequential")
    assert scaled.result["messages"][-1].text == "third"
    assert [message.type for message in answers.prompts[2]] == ["human", "ai", "human", "ai", "human"]
    assert answers.prompts[2][1].text == "first"
    assert "the task" in answers.prompts[2][4].text
    assert scaled.cost.calls == 3
    assert len(make.episodes()) == 3


def test_a_selector_chooses(make, scale):
    agent = make.agent(Numbered("a", "bbb", "cc"), [], [make.memory(strategy=Groups())])
    longest = lambda attempts: max(range(len(attempts)), key=lambda place: len(attempts[place].text))  # noqa: E731
    assert scale(agent, n=3, selector=longest).best.text == "bbb"


def test_all_fail(make, scale):
    memory = make.memory(strategy=Groups())
    with pytest.raises(RolloutsFailed):
        scale(make.agent(Numbered(*[RuntimeError("down")] * 2), [], [memory]), n=2)
    assert memory.memory.flush()
    assert [r.content for r in memory.memory.records()] == ["task 2 runs ['failure', 'failure']"]


def test_the_runs_scope_is_the_groups(make, scale):
    memory = make.memory(strategy=Groups(), multi_tenant=True)
    agent = make.agent(Numbered("7", "7"), [ok], [memory])
    with pytest.raises(ConfigError, match="whose memory"):
        scale(agent, n=2)
    config = {"configurable": {"remnant": {"namespace": "ann", "k": 3}}}
    scaled = scale(agent, n=2, config=config)
    assert {e.group for e in make.episodes("ann")} == {scaled.group}


def test_an_agent_inside_a_run_is_not_the_run(make, scale):
    memory = make.memory(strategy=Groups())
    inner = make.agent(lambda _: "inner", [], [memory])

    @tool
    def delegate() -> str:
        """Asks another agent."""
        return inner.invoke({"messages": [("user", "inner task")]})["messages"][-1].text

    def answer(messages: Any) -> Any:
        if messages[-1].type == "human":
            return AIMessage("", tool_calls=[{"name": "delegate", "args": {}, "id": "1"}])
        return "outer"

    scaled = scale(make.agent(answer, [delegate], [memory]), n=1)
    found = {e.id: e.task for e in make.episodes()}
    assert found[scaled.best.episode] == "the task"
    assert sorted(found.values()) == ["inner task", "the task"]


def test_which_memory_is_meant(make, scale, tmp_path):
    with pytest.raises(ConfigError, match="0 memories"):
        scale(make.agent(lambda _: "x"))
    two = [make.memory(label="a", strategy=Groups()), make.memory(label="b", path=tmp_path / "b.db")]
    agent = make.agent(lambda _: "x", [], two)
    with pytest.raises(ConfigError, match="2 memories"):
        scale(agent)
    assert scale(agent, n=2, memory=two[0].memory).result["messages"][-1].text == "x"
