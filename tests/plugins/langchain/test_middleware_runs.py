"""Many runs at once, several memories, several tenants, and a run that outlives its process."""

import asyncio
import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from remnant.errors import ConfigError
from remnant.memory import Memory
from remnant_langchain import MemoryMiddleware, memory_tools
from remnant_langchain._options import Options, scope_of


@tool
def look(word: str) -> str:
    """Looks a word up."""
    return f"seen {word}"


def looks_up_its_own_word(messages: Any) -> Any:
    """Every run speaks of its own word only."""
    word = messages[-1].text if messages[-1].type == "human" else messages[-1].text.removeprefix("seen ")
    if messages[-1].type == "human":
        return AIMessage("", tool_calls=[{"name": "look", "args": {"word": word}, "id": word}])
    return f"answer {word}"


def inputs(count: int) -> list[dict[str, Any]]:
    return [{"messages": [("user", f"word{number}")]} for number in range(count)]


def check_not_crossed(make: Any, count: int) -> None:
    episodes = make.episodes()
    assert sorted(e.task for e in episodes) == sorted(f"word{n}" for n in range(count))
    for episode in episodes:
        assert [step["content"] for step in episode.steps] == ["", f"seen {episode.task}", f"answer {episode.task}"]
        assert episode.closed_at is not None


def test_a_batch(make):
    agent = make.agent(looks_up_its_own_word, [look], [make.memory()])
    configs = [{"configurable": {"remnant": {"group": "g", "rollout": n}}} for n in range(50)]
    agent.batch(inputs(50), configs)
    check_not_crossed(make, 50)
    assert {e.task: (e.group, e.metadata["rollout"]) for e in make.episodes()} == {
        f"word{n}": ("g", n) for n in range(50)
    }


async def test_a_gathering(make):
    agent = make.agent(looks_up_its_own_word, [look], [make.memory()])
    await asyncio.gather(*(agent.ainvoke(given) for given in inputs(50)))
    check_not_crossed(make, 50)


def test_threads(make):
    agent = make.agent(looks_up_its_own_word, [look], [make.memory()])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(agent.invoke, inputs(50)))
    check_not_crossed(make, 50)


def test_two_memories_in_one_agent(make, tmp_path: Path, run):
    first, second = make.memory(label="first"), make.memory(label="second", path=tmp_path / "other.db")
    first.memory.add("word1 is red")
    second.memory.add("word1 is green")
    seen: list[Any] = []

    def answer(messages: Any) -> Any:
        seen.append(messages)
        return looks_up_its_own_word(messages)

    agent = make.agent(answer, [look], [first, second], checkpointer=InMemorySaver())
    run(agent, "word1", {"configurable": {"thread_id": "1"}})
    assert "red" in seen[0][0].text
    assert "green" in seen[0][0].text
    for memory in (first.memory, second.memory):
        (stub,) = memory.store.episodes("default")
        episode = memory.store.episode("default", stub.id)
        assert episode is not None
        assert len(episode.steps) == 3
        assert episode.closed_at is not None


def test_files_and_strategies_name_memories(make, tmp_path: Path):
    names = [make.memory().name, make.memory(path=tmp_path / "a b|c:d.db", strategy="tim").name]
    assert names == ["Remnant[agent-echo]", "Remnant[a-b-c-d-tim]"]
    make.agent(looks_up_its_own_word, [look], make.made)


def test_a_run_outlives_its_process(tmp_path: Path):
    child = Path(__file__).with_name("restart_child.py")

    def process(what: str) -> int:
        return subprocess.run([sys.executable, str(child), str(tmp_path), what], check=False).returncode

    assert process("ask") == 9
    with Memory.open(tmp_path / "agent.db", scope="a", write="manual") as memory:
        (waiting,) = memory.store.episodes("a")
        assert waiting.closed_at is None
    assert process("resume") == 0
    with Memory.open(tmp_path / "agent.db", scope="a", write="manual") as memory:
        (stub,) = memory.store.episodes("a")
        episode = memory.store.episode("a", stub.id)
        assert episode is not None
        assert [step["content"] for step in episode.steps] == ["", "a person says yes", "done"]
        assert (episode.closed_at is None, episode.verdict) == (False, "unknown")


@pytest.mark.parametrize("saver", [None, InMemorySaver])
def test_only_a_run_with_checkpoints_may_go_on_elsewhere(make, run, saver):
    """A thread's name alone does not keep the episode of a dead process open."""

    def answer(messages: Any) -> str:
        with sqlite3.connect(make.path) as c:
            owners.extend(owner for (owner,) in c.execute("SELECT owner FROM episodes"))
        return "done"

    owners: list[str] = []
    agent = make.agent(answer, [], [make.memory()], checkpointer=saver() if saver else None)
    run(agent, "q", {"configurable": {"thread_id": "1"}})
    assert [owner == "" for owner in owners] == [saver is not None]


# ---- whose memory it is


@dataclass
class Person:
    user_id: str | None = None


def runtime(context: Any = None, user: Any = None) -> Any:
    server = SimpleNamespace(user=SimpleNamespace(identity=user)) if user else None
    return SimpleNamespace(context=context, server_info=server)


@pytest.mark.parametrize(
    ("explicit", "namespace", "context", "user", "expected"),
    [
        ("fixed", "n", Person("u"), "s", "fixed"),
        (lambda rt: {"user": rt.context.user_id, "tenant": "t"}, "n", Person("u"), "s", "tenant=t/user=u"),
        (None, "n", Person("u"), "s", "n"),
        (None, {"tenant": "t"}, Person("u"), "s", "tenant=t"),
        (None, None, Person("u"), "s", "user=u"),
        (None, None, {"user_id": 7}, "s", "user=7"),
        (None, None, Person("tenant=t/user=u"), None, "user=tenant%3Dt%2Fuser%3Du"),
        (None, None, Person(None), "s", "user=s"),
        (None, None, Person(" "), None, None),
        (None, None, None, None, None),
        (None, "", {}, None, None),
    ],
)
def test_whose_memory_it_is(explicit, namespace, context, user, expected):
    options = Options(namespace=namespace)
    if expected is None:
        assert scope_of(explicit, options, runtime(context, user), False) == "default"
        with pytest.raises(ConfigError, match="whose memory"):
            scope_of(explicit, options, runtime(context, user), True)
    else:
        assert scope_of(explicit, options, runtime(context, user), True) == expected


def test_without_a_visible_configuration_nothing_is_guessed():
    """As in async code on Python 3.10."""
    with pytest.raises(ConfigError, match=r"3\.10"):
        scope_of(None, None, runtime(Person("u")), False)
    assert scope_of("fixed", None, runtime(), True) == "fixed"


def test_several_tenants_demand_a_name(make, run):
    agent = make.agent(looks_up_its_own_word, [look], [make.memory(multi_tenant=True)])
    with pytest.raises(ConfigError, match="whose memory"):
        run(agent, "word1")
    assert make.episodes() == []


def test_a_thread_taken_over_by_another_user_shows_nothing(make, run):
    """The state still names the first user's records; the second one's scope does not hold them."""
    memory, seen = make.memory(multi_tenant=True), []
    memory.memory.scoped({"user": "ann"}).add("word1 is the password of ann")

    def answer(messages: Any) -> Any:
        seen.append(str(messages))
        if messages[-1].type == "human" and len(seen) == 1:
            raise RuntimeError("down")
        return "done"

    agent = make.agent(answer, [], [memory], context_schema=Person, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    with pytest.raises(RuntimeError):
        run(agent, "word1", config, context=Person("ann"))
    assert "password" in seen[0]
    agent.invoke(None, config, context=Person("bob"))
    assert "password" not in seen[1]


def test_two_tenants_through_every_door(make):
    """Random work under two scopes; nothing of one is ever shown to the other."""
    rng = random.Random(7)
    memory = make.memory(multi_tenant=True, strategy="facts")
    tools = {name: {t.name: t for t in memory_tools(_scoped(memory, name))} for name in ("ann", "bob")}
    seen: list[tuple[str, str]] = []

    def answer(messages: Any) -> str:
        seen.append((next(m.text for m in messages if m.type == "human"), str(messages)))
        return "done"

    agent = make.agent(answer, [], [memory], context_schema=Person)
    words = ["tea", "milk", "door", "blue"]
    for _ in range(60):
        who = rng.choice(["ann", "bob"])
        said = f"{rng.choice(words)} {rng.choice(words)} secret-of-{who}"
        match rng.randrange(4):
            case 0:
                tools[who]["save_memory"].invoke({"content": said})
            case 1:
                found = tools[who]["search_memory"].invoke({"query": f"{rng.choice(words)} secret-of-ann bob"})
                assert f"secret-of-{_other(who)}" not in found
            case 2:
                agent.invoke({"messages": [("user", f"{who}: tea milk door")]}, context=Person(who))
            case _:
                stranger = memory.memory.scoped({"user": _other(who)}).records()
                if stranger:
                    changed = tools[who]["update_memory"].invoke({"id": stranger[0].id, "content": "stolen"})
                    assert "no memory" in changed
                    assert "no memory" in tools[who]["forget_memory"].invoke({"id": stranger[0].id})
    assert any("secret-of-" in prompt for _, prompt in seen)
    assert all(f"secret-of-{_other(task[:3])}" not in prompt for task, prompt in seen)
    assert "stolen" not in str(memory.memory.scoped({"user": "ann"}).records())


def _other(who: str) -> str:
    return "bob" if who == "ann" else "ann"


def _scoped(middleware: MemoryMiddleware, who: str) -> Memory:
    return middleware.memory_of(SimpleNamespace(context=Person(who)))


def test_facts_learn_what_the_user_said(make):
    """The question is the episode's task and no step of it; a fact in it is learnt all the same."""
    seen: list[str] = []

    def keeps(messages: Any) -> str:
        seen.append("\n".join(message.text for message in messages))
        return '{"changes": [{"action": "ADD", "note": "", "text": "Ada takes her tea without milk."}]}'

    middleware = make.memory(strategy="facts", llm=make.model(keeps))
    agent = make.agent(lambda messages: "noted", middleware=[middleware])
    agent.invoke({"messages": [("user", "I am Ada and take my tea without milk.")]})
    assert middleware.memory.flush(10)
    assert "| I am Ada and take my tea without milk.\n| noted" in seen[0]
    (hit,) = middleware.memory.recall("How does Ada take her tea?")
    assert hit.text == "Ada takes her tea without milk."
