"""What a policy says about itself, and that one file is enough to add one."""

from __future__ import annotations

import os
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")

from remnant.kv import Policy, get_policy, list_policies, policy_class  # noqa: E402
from remnant.kv.policy import Layout, Need  # noqa: E402

HERE = Path(__file__).parent
NAMES = list_policies()


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_says_what_it_is(name):
    cls = policy_class(name)
    assert is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    assert cls.name == name
    assert cls.source
    assert cls.claim
    assert not cls.claim.endswith(".")
    assert cls.needs <= set(typing.get_args(Need))
    assert cls.layout in typing.get_args(Layout)
    assert cls.__module__.startswith("remnant.kv.policies.")
    assert cls.__module__.endswith(name)
    doc = cls.__doc__ or ""
    assert "\n    Source: " in doc
    assert "Differs: " in doc


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_documented_and_has_a_default(name):
    """Options that every policy has may be left to the base; the ones of its own are explained."""
    cls = policy_class(name)
    doc = cls.__doc__ or ""
    base = {f.name for f in fields(Policy)}
    for option in (f.name for f in fields(cls) if f.init and f.name not in base):
        assert f"        {option}: " in doc, f"{name}: {option} is not in the docstring"
    policy = get_policy(name)
    assert policy == get_policy(name, **policy.options())
    assert policy.minimum >= 1
    assert policy.slack >= 0


SOURCE = '''"""Odd: a policy from another package, in one file."""

from dataclasses import dataclass
from typing import ClassVar

from remnant.hookspecs import hookimpl
from remnant.kv import KVView, Policy, Trigger


@dataclass(frozen=True)
class Odd(Policy):
    """Keep odd positions before even ones.

    Source: none. Differs: nothing.
    """

    name: ClassVar[str] = "odd"
    source: ClassVar[str] = "a test"
    claim: ClassVar[str] = "shows that one file is enough"

    @property
    def when(self):
        """After a prompt and at every token."""
        return (Trigger("prefill_end"), Trigger("step"))

    def score(self, view: KVView):
        """1 for odd distances from the row's start."""
        from remnant.kv.select import first_positions

        return ((view.positions - first_positions(view)) % 2).float()


@hookimpl
def remnant_policies():
    """The one."""
    return [Odd]
'''


def test_one_file_and_the_suite_runs_on_it(tmp_path):
    """An installed package with one module: the registry finds it, and the suite covers it unasked. Part of it here."""
    (tmp_path / "odd_policy.py").write_text(SOURCE)
    about = tmp_path / "odd_policy-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-policy\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[remnant]\nodd = odd_policy\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", str(HERE / "test_conformance.py"), "-k", "odd and (s2 or s5 or s7)"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env=env, cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "3 passed" in done.stdout, done.stdout[-300:]
