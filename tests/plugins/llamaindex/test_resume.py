"""A process that ends does not end what it learnt, what was said, or the run it was in; and hosts share a file."""

import importlib.util
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.workflow import Context, HumanResponseEvent, JsonSerializer

CHILD = Path(__file__).parent / "resume_child.py"


@pytest.fixture(scope="module")
def child() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resume_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder in which a process was killed while its agent waited for a person."""
    command = [sys.executable, "-W", "ignore", str(CHILD), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return tmp_path


@pytest.mark.parametrize("tracked", [False, True])
async def test_killed_run_goes_on_as_the_same_episode(child: ModuleType, killed: Path, tracked: bool):
    memory = child.open_memory(str(killed))
    (left,) = memory.core.store.episodes("tenant-a")
    assert (left.task, left.source) == ("close the shop", "recovery")
    agent = child.make_agent()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = Context.from_dict(agent, json.loads((killed / "context.json").read_text()), JsonSerializer())
        run = agent.run(ctx=context)
        await run.ctx.store.set("memory", memory)  # which LlamaIndex leaves out of a context's data
        run = memory.track(run) if tracked else run
        run.ctx.send_event(HumanResponseEvent(response="yes, go"))  # pyright: ignore[reportCallIssue]
        assert str(await run) == "done"
    (episode,) = memory.core.store.episodes("tenant-a")
    assert episode.id == left.id
    assert (episode.verdict, episode.source) == ("unknown", "rule")
    contents = [step["content"] for step in memory.core.store.episode("tenant-a", left.id).steps]
    assert contents[0] == "close the shop"
    assert contents[-2:] == ["yes, go", "done"]
    said = [message.content for message in await memory.aget_all()]
    assert (said[0], said[-1]) == ("close the shop", "done")
    await memory.aclose()


async def test_new_turn_after_a_kill_is_a_new_episode(child: ModuleType, killed: Path):
    memory = child.open_memory(str(killed))
    await memory.aput_messages([ChatMessage(role="user", content="hello"), ChatMessage(role="assistant", content="hi")])
    tasks = [episode.task for episode in memory.core.store.episodes("tenant-a")]
    assert sorted(tasks) == ["close the shop", "hello"]
    steps = memory.core.store.episode("tenant-a", memory.episode).steps
    assert [step["content"] for step in steps] == ["hello", "hi"]
    await memory.aclose()


async def test_what_one_process_learnt_the_next_one_reads(stage: Any, say_: Any):
    first = stage.open(write="inline")
    await stage.agent(lambda _: say_("I will: Ada takes her tea without milk.")).run(
        user_msg="Remember how Ada takes her tea: without milk.", memory=first
    )
    await first.aclose()
    second = stage.open()
    await stage.agent(lambda _: say_("without milk")).run(user_msg="How does Ada take her tea?", memory=second)
    assert stage.shown("I will: Ada takes her tea without milk.")


async def test_one_file_serves_the_core_and_llamaindex(stage: Any, say_: Any):
    core = stage.core(write="inline")
    core.add("Ada takes her tea without milk.")
    memory = stage.open(write="inline")
    await stage.agent(lambda _: say_("She likes scones with it.")).run(
        user_msg="How does Ada take her tea?", memory=memory
    )
    assert stage.shown("Ada takes her tea without milk.")
    assert "She likes scones with it." in [hit.text for hit in core.recall("scones")]
    (episode,) = core.store.episodes("tenant-a")
    core.feedback(episode.id, success=True)
    assert stage.episode(memory).verdict == "success"


async def test_one_file_serves_langchain_and_llamaindex(stage: Any, say_: Any):
    retriever = pytest.importorskip("remnant_langchain", reason="needs the extra langchain").MemoryRetriever
    memory = stage.open(write="inline")
    await stage.agent(lambda _: say_("She likes scones with it.")).run(user_msg="What about Ada?", memory=memory)
    found = retriever(memory=stage.core()).invoke("scones")
    assert "She likes scones with it." in [document.page_content for document in found]
