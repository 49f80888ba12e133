"""The example runs as it is: with its script, and against an endpoint over HTTP."""

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from llama_index.core.base.llms.types import ChatMessage

from remnant.memory import Memory


@pytest.fixture(scope="module")
def example() -> Any:
    path = Path(__file__).parents[3] / "examples" / "llamaindex_agent.py"
    spec = importlib.util.spec_from_file_location("llamaindex_agent_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks names up there
    spec.loader.exec_module(module)
    return module


def arrived(line: str) -> int:
    """How many parcels of the second half arrived."""
    return int(re.findall(r"second half (\d+)/", line)[0])


def test_with_its_script(example: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    path = tmp_path / "agent.db"
    assert example.main(["--file", str(path), "--tasks", "24"]) == 0
    without, with_memory, *learnt = capsys.readouterr().out.splitlines()
    assert arrived(with_memory) >= arrived(without) + 5
    assert "  learnt: Blue goes to Skerry." in learnt
    memory = Memory.open(path, scope="example", write="manual")
    episodes = memory.store.episodes("example")
    assert len(episodes) == 24
    assert {episode.verdict for episode in episodes} == {"success", "failure"}
    memory.close()


class Endpoint(BaseHTTPRequestHandler):
    """A chat endpoint around the example's script."""

    requests: ClassVar[list[dict[str, Any]]] = []
    script: ClassVar[Any] = None

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        messages = [ChatMessage(role=m["role"], content=m["content"]) for m in request["messages"]]
        message = {"role": "assistant", "content": type(self).script(messages)}
        body = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def address(example: Any) -> Iterator[str]:
    pytest.importorskip("openai", reason="needs the extra openai")
    Endpoint.requests.clear()
    Endpoint.script = staticmethod(example.script)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_against_an_endpoint(example: Any, address: str, capsys: pytest.CaptureFixture[str]):
    assert example.main(["--base-url", address, "--model", "any", "--tasks", "10"]) == 0
    out = capsys.readouterr().out
    assert "learnt: " in out
    assert {request["model"] for request in Endpoint.requests} == {"any"}
    prompts = [request["messages"][-1]["content"] for request in Endpoint.requests]
    assert any("goes to" in prompt and "Deliver parcel" in prompt for prompt in prompts)


def test_address_without_a_model_is_refused(example: Any, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        example.main(["--base-url", "http://127.0.0.1:1/v1"])
    assert "go together" in capsys.readouterr().err
