"""Importing a package loads no framework that it does not need."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

HEAVY = {
    "torch",
    "transformers",
    "triton",
    "vllm",
    "langchain",
    "langchain_core",
    "langgraph",
    "llama_index",
    "matplotlib",
}

LIGHT = [
    "remnant",
    "remnant.errors",
    "remnant.hookspecs",
    "remnant.hosts",
    "remnant.plugins",
    "remnant.registry",
    "remnant.systems",
    "remnant.cli",
    "remnant.memory",
    "remnant.index",
    "remnant.routing",
    "remnant.serving",
    "remnant.kinetics",
    "remnant_hf",
    "remnant_hf.plugin",
    "remnant_langchain",
    "remnant_langchain.plugin",
    "remnant_llamaindex",
    "remnant_llamaindex.plugin",
]


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Top-level names in `sys.modules` after a piece of code ran in a fresh interpreter."""
    tail = "\nimport json, sys\nsys.stderr.write(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code + tail, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stderr)}


def exists(module: str) -> bool:
    top, _, rest = module.partition(".")
    return find_spec(top) is not None and (not rest or find_spec(module) is not None)


@pytest.mark.parametrize("module", [name for name in LIGHT if exists(name)])
def test_import_is_light(module: str):
    assert not loaded_by(f"import {module}") & HEAVY


def test_agent_memory_is_light():
    found = loaded_by("import remnant.memory, remnant.routing, remnant_langchain")
    assert not found & HEAVY


def test_the_door_to_langchain_loads_no_other_framework():
    pytest.importorskip("langchain", reason="needs the extra langchain")
    found = loaded_by("from remnant_langchain import MemoryMiddleware, memory_callback, memory_tools, matts")
    assert not found & (HEAVY - {"langchain", "langchain_core", "langgraph"})


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["systems"], ["testbed", "--help"]])
def test_command_is_light(arguments: list[str]):
    assert not loaded_by("from remnant.cli import main\nmain()", *arguments) & HEAVY


@pytest.mark.parametrize("module", ["remnant.kv", "remnant.testbed"])
def test_part_needs_no_host(module: str):
    pytest.importorskip("torch", reason="needs the extra torch")
    assert not loaded_by(f"import {module}") & (HEAVY - {"torch", "triton"})
