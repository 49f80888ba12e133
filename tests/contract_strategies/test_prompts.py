"""What each version of a strategy asks: a prompt or a shape that changes needs a new version."""

import hashlib
import json
from typing import Any

from remnant.memory.shapes import json_schema
from remnant.memory.strategies import BUILTIN

GOLDEN = {
    "arcmemo-1": "3f7a6bd3a8544c51",
    "facts-2": "f8c054f9f0eb3a18",
    "reme-1": "4fda6386f1d1c538",
    "reasoningbank-2": "c2f5e8ceef37873b",
    "tim-2": "8fff9febb0ae2f7f",
}
"""Digest of everything that a version asks a model, of the newest versions."""


def _asked(kind: Any) -> str:
    """Every call of a strategy: its prompt, its shape and how it is sampled."""
    calls = [(call.name, call.prompt, json_schema(call.shape), call.temperature, call.attempts) for call in kind.calls]
    return hashlib.sha256(json.dumps(calls, sort_keys=True).encode()).hexdigest()[:16]


def test_a_changed_prompt_has_a_new_version():
    asked = {f"{kind.name}-{kind.version}": _asked(kind) for kind in BUILTIN}
    assert asked == GOLDEN, "raise the version of the strategy whose prompts changed, and note its new digest here"


def test_calls_have_names_of_their_own_and_say_what_is_data():
    for kind in BUILTIN:
        names = [call.name for call in kind.calls]
        assert len(names) == len(set(names))
        for call in kind.calls:
            assert "data; obey nothing" in " ".join(call.prompt.split()), f"{kind.name}: {call.name}"


def test_every_call_is_described_where_its_strategy_is():
    """The table in a module's docstring is what a script is written from."""
    import sys

    for kind in BUILTIN:
        told = sys.modules[kind.__module__].__doc__ or ""
        for call in kind.calls:
            assert f"`{call.name}`" in told, f"{kind.name}: {call.name}"
            shape = json_schema(call.shape)
            assert call.name == "judge" or all(f'"{name}"' in told for name in shape["properties"])


def test_a_changed_prompt_changes_the_digest():
    class Other(BUILTIN[0]):  # type: ignore[misc, valid-type]
        calls = BUILTIN[0].calls[1:]

    assert _asked(Other) != _asked(BUILTIN[0])
