"""A run that goes on: in another process, or after it had counted as over."""

import subprocess
import sys
from pathlib import Path

import pytest

from remnant.errors import ConfigError
from remnant.memory import Add, Memory, Record, ScriptedChatModel
from remnant.memory.owner import WAITS


class Echo:
    """A strategy that keeps the last step of each episode."""

    name, version = "echo", "1"

    def index_text(self, record):
        from remnant.memory import IndexText

        return IndexText(record.content, record.content)

    def select(self, query, hits):
        return hits

    def render(self, hits):
        return ""

    def distil(self, episodes, context):
        return [Add(Record(episode.steps[-1]["content"], trust="agent")) for episode in episodes]


def texts(memory: Memory) -> list[str]:
    return [record.content for record in memory.records()]


def opened_elsewhere(path: Path, resumable: bool) -> None:
    """Another process opens the episode `run` and dies."""
    code = (
        "import os, sys; from remnant.memory import Memory\n"
        "memory = Memory.open(sys.argv[1], scope='a', write='manual')\n"
        f"memory.open_episode('task', id='run', resumable={resumable})\n"
        "memory.observe('run', {'content': 'first'}); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9


def test_another_process_goes_on_with_a_resumable_episode(tmp_path: Path):
    opened_elsewhere(tmp_path / "m.db", resumable=True)
    with Memory.open(tmp_path / "m.db", Echo(), scope="a", write="manual") as memory:
        episode = memory.store.episode("a", "run")
        assert episode is not None
        assert episode.closed_at is None
        memory.observe("run", {"content": "second"})
        memory.close_episode("run", "success")
        assert memory.flush()
        assert texts(memory) == ["second"]


def test_the_end_of_its_process_ends_any_other(tmp_path: Path):
    opened_elsewhere(tmp_path / "m.db", resumable=False)
    with Memory.open(tmp_path / "m.db", Echo(), scope="a", write="manual") as memory:
        episode = memory.store.episode("a", "run")
        assert episode is not None
        assert (episode.closed_at is None, episode.source) == (False, "recovery")


def test_nobody_waits_for_ever(tmp_path: Path):
    now = [1e9]
    with Memory.open(tmp_path / "m.db", Echo(), scope="a", write="manual", clock=lambda: now[0]) as memory:
        memory.open_episode("task", id="run", resumable=True)
        now[0] += WAITS - 1
        assert memory.store.abandoned("a") == []
        now[0] += 2
        assert memory.store.abandoned("a") == ["run"]


def test_an_episode_that_goes_on_is_learnt_from_anew(tmp_path: Path):
    with Memory.open(tmp_path / "m.db", Echo(), scope="a", write="manual") as memory:
        memory.open_episode("task", id="run")
        memory.observe("run", {"content": "it broke"})
        memory.close_episode("run", "failure", "exception")
        assert memory.flush()
        assert texts(memory) == ["it broke"]
        assert memory.reopen_episode("run")
        assert not memory.reopen_episode("run")
        memory.observe("run", {"content": "it works"})
        memory.close_episode("run", "success")
        assert memory.flush()
        assert texts(memory) == ["it works"]


def test_one_that_waits_to_be_learnt_from_is_called_off(tmp_path: Path):
    with Memory.open(tmp_path / "m.db", Echo(), scope="a", write="manual") as memory:
        memory.open_episode("task", id="run")
        memory.observe("run", {"content": "it broke"})
        memory.close_episode("run", "failure")
        memory.reopen_episode("run")
        assert memory.stats()["pending"] == 0
        assert memory.flush()
        assert texts(memory) == []


def test_counters_of_use_are_taken_back(tmp_path: Path):
    with Memory.open(tmp_path / "m.db", Echo(), scope="a", write="manual") as memory:
        (id,) = memory.add("tea without milk")
        memory.open_episode("tea", id="run")
        memory.recall("tea", episode="run")
        memory.close_episode("run", "failure")
        memory.reopen_episode("run")
        utility = memory.get(id).utility  # pyright: ignore[reportOptionalMemberAccess]
        assert (utility.used, utility.harmed) == (0, 0)
        memory.close_episode("run", "success")
        utility = memory.get(id).utility  # pyright: ignore[reportOptionalMemberAccess]
        assert (utility.used, utility.harmed, utility.helped) == (1, 0, 1)


async def test_the_async_twin(tmp_path: Path):
    with Memory.open(tmp_path / "m.db", Echo(), scope="a", write="manual") as memory:
        await memory.aopen_episode("task", id="run", resumable=True)
        await memory.aclose_episode("run")
        assert await memory.areopen_episode("run", resumable=True)
        await memory.aobserve("run", {"content": "more"})


def test_what_there_is_not_cannot_go_on(tmp_path: Path):
    with (
        Memory.open(tmp_path / "m.db", Echo(), scope="a", write="manual") as memory,
        pytest.raises(ConfigError, match="no episode"),
    ):
        memory.reopen_episode("nothing")


def test_distillation_waits_for_a_model_that_is_not_there_yet(tmp_path: Path):
    class Late(ScriptedChatModel):
        ready = False

    model = Late([("", "[]")])
    with Memory.open(tmp_path / "m.db", Echo(), scope="a", llm=model, write="manual") as memory:
        memory.open_episode("task", id="run")
        memory.observe("run", {"content": "done"})
        memory.close_episode("run")
        assert not memory.flush(timeout=0.05)
        assert memory.stats()["pending"] == 1
        model.ready = True
        assert memory.flush()
        assert texts(memory) == ["done"]
