"""Plugins are found, guarded and reported."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from remnant import hookspecs
from remnant.errors import ConfigError
from remnant.hookspecs import hookimpl
from remnant.plugins import Plugins, hook_names


class Item:
    def __init__(self, name: Any) -> None:
        self.name = name


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch):
    """Make the entry point of a plugin whose hook for strategies is the given function."""

    def make(name: str, hook: Any = None) -> EntryPoint:
        module = ModuleType(f"fake_{name}")
        if hook is not None:
            module.remnant_strategies = hookimpl(hook)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return EntryPoint(name, module.__name__, "remnant")

    return make


def _names(plugins: Plugins) -> list[tuple[str, str]]:
    """What other plugins than the built-in one bring."""
    return [(plugin, item.name) for plugin, item in plugins.collect("remnant_strategies") if plugin != "builtin"]


def test_items_come_with_their_plugin(point: Any):
    plugins = Plugins([point("a", lambda: [Item("x")]), point("b", lambda: (Item("y"),))])
    assert _names(plugins) == [("a", "x"), ("b", "y")]
    assert plugins.failures == {}


def test_plugin_that_cannot_be_imported_is_reported():
    plugins = Plugins([EntryPoint("gone", "no_such_module", "remnant")])
    assert plugins.loaded() == []
    assert "no_such_module" in plugins.failures["gone"]


def test_plugin_whose_hook_raises_is_reported_and_others_work(point: Any):
    plugins = Plugins([point("bad", lambda: 1 / 0), point("good", lambda: [Item("x")])])
    assert _names(plugins) == [("good", "x")]
    assert plugins.failures == {"bad": "ZeroDivisionError: division by zero"}


@pytest.mark.parametrize("result", [None, 3, [Item("")], [Item(3)], [object()]])
def test_plugin_that_returns_nonsense_is_reported(point: Any, result: Any):
    plugins = Plugins([point("bad", lambda: result)])
    assert _names(plugins) == []
    assert "bad" in plugins.failures


def test_first_of_two_equal_names_stays(point: Any):
    plugins = Plugins([point("a", lambda: [Item("x")]), point("b", lambda: [Item("x")])])
    assert _names(plugins) == [("a", "x")]
    assert "already taken" in plugins.failures["b"]


@pytest.mark.parametrize(("select", "loaded"), [(None, ["a", "b"]), ("b", ["b"]), (" a , b", ["a", "b"]), ("", [])])
def test_selection_by_name(point: Any, select: str | None, loaded: list[str]):
    plugins = Plugins([point("a"), point("b")], select)
    assert plugins.loaded() == loaded
    assert set(plugins.failures) == {"a", "b"} - set(loaded)


def test_check_calls_the_hooks_of_third_parties(point: Any):
    plugins = Plugins([point("bad", lambda: 1 / 0)])
    plugins.check()
    assert "ZeroDivisionError" in plugins.failures["bad"]


def test_unknown_hook_lists_the_hooks():
    with pytest.raises(ConfigError, match="remnant_policies"):
        Plugins([]).collect("remnant_nothing")


def test_every_hook_has_a_builtin_or_says_that_it_has_none():
    from remnant import builtins

    for name in hook_names():
        text = getattr(hookspecs, name).__doc__
        assert hasattr(builtins, name) != ("No built-in yet" in text), name


@pytest.fixture
def installed(tmp_path: Path):
    """Install a plugin module for real, as a folder with metadata; run `remnant` beside it."""

    def install(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[remnant]\n{name} = {name}\n")

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from remnant.cli import main; sys.exit(main())"
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, **extra}
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return install, run


INDEX = """
from remnant import hookimpl

class Mine:
    name = "mine"

@hookimpl
def remnant_drafters():
    return [Mine]
"""

POLICY = """
from remnant import hookimpl

@hookimpl
def remnant_policies():
    from remnant.kv import get_policy

    class Theirs(type(get_policy("knorm"))):
        name = "theirs"

    return [Theirs]
"""


def test_installed_plugins_are_found_and_a_broken_one_is_reported(installed: Any):
    install, run = installed
    install("mine", INDEX)
    install("broken", "raise RuntimeError('no')")
    result = run("plugins", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["mine"]["state"] == "ready"
    assert rows["broken"] == {
        "name": "broken",
        "state": "off",
        "reason": "RuntimeError: no",
        "install": "",
    }


def test_environment_selects_plugins(installed: Any):
    install, run = installed
    install("mine", INDEX)
    rows = {row["name"]: row for row in json.loads(run("plugins", "--json", REMNANT_PLUGINS="hf").stdout)}
    assert rows["mine"]["state"] == "off"
    assert "REMNANT_PLUGINS" in rows["mine"]["reason"]


def test_policy_of_a_third_party_is_listed(installed: Any):
    pytest.importorskip("torch", reason="needs the extra torch")
    install, run = installed
    install("theirs", POLICY)
    result = run("policies", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row["plugin"] for row in json.loads(result.stdout)}
    assert rows["theirs"] == "theirs"
    assert rows["snapkv"] == "builtin"
