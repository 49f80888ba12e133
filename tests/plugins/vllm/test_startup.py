"""What happens before an engine runs: nothing without the flag, a clear word when something does not fit."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from remnant.errors import HostVersionError
from remnant_vllm import plugin
from remnant_vllm._compat import engine as names

pytestmark = pytest.mark.vllm


def test_registering_is_light_and_can_be_repeated() -> None:
    """In a fresh process: no policy, no spec, no wrap of the scheduler is loaded by the entry point."""
    code = """
import sys
import vllm.platforms, vllm.v1.attention.backends.registry, vllm.config
before = set(sys.modules)
from remnant_vllm.plugin import register
register(); register()
new = sorted(m for m in set(sys.modules) - before if m.startswith("remnant"))
print(new)
assert not any(m.startswith(("remnant.kv", "remnant_vllm.spec", "remnant_vllm._compat.engine")) for m in new), new
from vllm.platforms import current_platform
wrapped = type(current_platform).get_attn_backend_cls.__func__
assert wrapped.__remnant__ and not getattr(wrapped.__wrapped__, "__remnant__", False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_fault_while_registering_never_stops_vllm(monkeypatch: Any, caplog: Any) -> None:
    def broken() -> None:
        raise RuntimeError("a release without the registry")

    monkeypatch.setattr(plugin, "_register", broken)
    with caplog.at_level("WARNING", logger="vllm.remnant"):
        plugin.register()


@pytest.mark.parametrize("found", ["0.31.2", "0.34.0", "1.0"])
def test_another_release_is_named(found: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(names, "installed_version", lambda _: found)
    with pytest.raises(HostVersionError, match=rf"vllm {found} is installed; accepted: .*0\.3[24]"):
        names.check_host()


def test_both_ends_of_the_window_are_accepted(monkeypatch: Any) -> None:
    for found in ("0.32.0", "0.33.9"):
        monkeypatch.setattr(names, "installed_version", lambda _, found=found: found)
        names.check_host()


def test_a_changed_signature_is_named(monkeypatch: Any) -> None:
    """A release inside the window that moved something we override."""

    def get_computed_blocks(self: Any, other: Any) -> None: ...

    monkeypatch.setattr(names, "SIGNATURES", ((get_computed_blocks, ("request",)),))
    with pytest.raises(HostVersionError, match="get_computed_blocks lacks request"):
        names.check_host()


def test_wrapping_happens_once() -> None:
    class Owner:
        def method(self, x: int) -> int:
            return x

        @classmethod
        def of_class(cls, x: int) -> int:
            return x

    def twice(original: Any) -> Any:
        return lambda self, x: 2 * original(self, x)

    for _ in range(3):
        names.wrap_once(Owner, "method", twice)
        names.wrap_once(Owner, "of_class", twice)
    assert Owner().method(3) == 6
    assert Owner.of_class(3) == 6


@pytest.mark.parametrize("flag", ["decode_context_parallel_size", "prefill_context_parallel_size"])
def test_context_parallel_is_refused(flag: str) -> None:
    from remnant.errors import UnsupportedPolicy
    from remnant_vllm.settings import Settings
    from remnant_vllm.startup import _parallel

    settings = Settings.parse({"policy": "knorm", "budget": 8})
    _parallel(SimpleNamespace(parallel_config=SimpleNamespace(**{flag: 1})), settings)
    with pytest.raises(UnsupportedPolicy, match=f"--{flag.replace('_', '-')} 2"):
        _parallel(SimpleNamespace(parallel_config=SimpleNamespace(**{flag: 2})), settings)


def test_mla_is_refused() -> None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from remnant.errors import UnsupportedPolicy
    from remnant_vllm.settings import Settings
    from remnant_vllm.startup import _backend

    attention = SimpleNamespace(backend=AttentionBackendEnum.CUSTOM, backend_per_kind={})
    config = SimpleNamespace(attention_config=attention, model_config=SimpleNamespace(model="m", use_mla=True))
    with pytest.raises(UnsupportedPolicy, match="latent attention"):
        _backend(config, Settings.parse({"policy": "knorm", "budget": 8}))
