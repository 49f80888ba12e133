"""The example runs as it is: with its script, and against an endpoint over HTTP."""

import importlib.util
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="pip install 'remnant[openai]'")


@pytest.fixture(scope="module")
def example() -> Any:
    path = Path(__file__).parents[3] / "examples" / "langchain_agent.py"
    spec = importlib.util.spec_from_file_location("langchain_agent_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks names up there
    spec.loader.exec_module(module)
    return module


def opened(line: str) -> int:
    """How many chests of the second half opened."""
    return int(re.findall(r"second half (\d+)/", line)[0])


def test_with_its_script(example, capsys, tmp_path: Path):
    assert example.main(["--file", str(tmp_path / "agent.db")]) == 0
    without, with_memory, *learnt = capsys.readouterr().out.splitlines()
    assert opened(with_memory) >= opened(without) + 5
    assert "  learnt: For iron, take the copper key." in learnt
    assert (tmp_path / "agent.db").exists()


class Endpoint(BaseHTTPRequestHandler):
    """A chat endpoint that distils, and takes the key a note names; without one its third guess is right."""

    requests: list[dict[str, Any]] = []  # noqa: RUF012
    guesses: list[str] = []  # noqa: RUF012

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(request)
        said = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": self._answer(request["messages"])}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def _answer(self, messages: list[Any]) -> dict[str, Any]:
        text = json.dumps(messages)
        if "JSON Schema" in text:
            lesson = {"title": "Iron", "description": "Iron.", "content": "For iron, take the copper key."}
            return {"role": "assistant", "content": json.dumps({"items": [lesson]})}
        if messages[-1]["role"] == "tool":
            return {"role": "assistant", "content": f"{messages[-1]['content']}."}
        noted = "take the copper key" in text
        self.guesses.append("noted" if noted else "guessed")
        key = "copper" if noted or len(self.guesses) == 3 else "tin"
        arguments = json.dumps({"chest": "iron", "key": key})
        call = {"id": "1", "type": "function", "function": {"name": "try_key", "arguments": arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def address() -> Iterator[str]:
    Endpoint.requests.clear()
    Endpoint.guesses.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_against_an_endpoint(example, address, capsys, monkeypatch):
    monkeypatch.setattr(example, "FITS", {"iron": "copper"})
    assert example.main(["--base-url", address, "--model", "m", "--tasks", "2"]) == 0
    without, with_memory, learnt = capsys.readouterr().out.splitlines()
    assert Endpoint.guesses == ["guessed", "guessed", "guessed", "noted"]
    assert (without.split()[2], with_memory.split()[2]) == ("..", "++")
    assert learnt == "  learnt: For iron, take the copper key."
    agents = [request for request in Endpoint.requests if "tools" in request]
    assert agents[0]["tools"][0]["function"]["name"] == "try_key"
    assert set(agents[0]["tools"][0]["function"]["parameters"]["properties"]) == {"chest", "key"}
    assert {request["model"] for request in Endpoint.requests} == {"m"}


def test_half_an_endpoint_is_refused(example):
    with pytest.raises(SystemExit):
        example.main(["--base-url", "http://127.0.0.1:1/v1"])
