"""One process of an agent that waits for a person: run as `restart_child.py FOLDER ask|resume|again`.

The checkpointer keeps LangGraph's own serialised bytes in a JSON file; it stands for any that outlives a process.
"""

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from remnant.memory import ScriptedChatModel
from remnant_langchain import MemoryMiddleware


class FileSaver(InMemorySaver):
    """Checkpoints in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if path.exists():
            storage, writes, blobs = _unpack(json.loads(path.read_text()))
            for thread, spaces in storage.items():
                for space, checkpoints in spaces.items():
                    self.storage[thread][space].update(checkpoints)
            self.writes.update(writes)
            self.blobs.update(blobs)

    def save(self) -> None:
        """Write all of them."""
        self._path.write_text(json.dumps(_pack([self.storage, self.writes, self.blobs])))


def _pack(value: Any) -> Any:
    if isinstance(value, dict):
        return {"d": [[_pack(key), _pack(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"t" if isinstance(value, tuple) else "l": [_pack(item) for item in value]}
    return {"b": base64.b64encode(value).decode()} if isinstance(value, bytes) else {"v": value}


def _unpack(value: Any) -> Any:
    ((kind, inner),) = value.items()
    if kind == "d":
        return {_unpack(key): _unpack(item) for key, item in inner}
    if kind in "tl":
        items = [_unpack(item) for item in inner]
        return tuple(items) if kind == "t" else items
    return base64.b64decode(inner) if kind == "b" else inner


class Model(BaseChatModel):
    """Asks once, then answers."""

    @property
    def _llm_type(self) -> str:
        return "child"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **rest: Any) -> ChatResult:
        asked = AIMessage("", tool_calls=[{"name": "asks", "args": {}, "id": "1"}])
        message = asked if messages[-1].type == "human" else AIMessage("done")
        return ChatResult(generations=[ChatGeneration(message=message)])

    def bind_tools(self, tools: Any, **rest: Any) -> Any:
        return self


@tool
def asks() -> str:
    """Asks a person."""
    return f"a person says {interrupt('may I?')}"


def main(folder: Path, what: str) -> None:
    """Ask and die, or resume."""
    model = ScriptedChatModel([("", '{"changes": []}')])
    memory = MemoryMiddleware(folder / "agent.db", scope="a", llm=model, write="manual")
    saver = FileSaver(folder / "checkpoints.json")
    agent = create_agent(Model(), [asks], middleware=[memory], checkpointer=saver)
    config: Any = {"configurable": {"thread_id": "1"}}
    given: Any = {"messages": [("user", "the task")]} if what == "ask" else Command(resume="yes")
    agent.invoke(given, config)
    saver.save()
    os._exit(9 if what == "ask" else 0)  # as a process that is killed: nothing is closed


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
