"""What a run says about its memory: options in its configuration, and whose memory it is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from langgraph.config import get_config
from langgraph.runtime import Runtime

from remnant.errors import ConfigError, unknown
from remnant.memory.record import DEFAULT_SCOPE, check_scope

Scope = str | Mapping[str, str]

_SAVER = "__pregel_checkpointer"
"""Where LangGraph says which checkpointer a run has; a release that does not say it counts as having one."""


@dataclass(frozen=True)
class Options:
    """`config["configurable"]["remnant"]` of a run; what is left out is the middleware's.

    Args:
        off: no recall and no recording.
        k: records recalled at most.
        budget_tokens: tokens of all recalled records together at most.
        as_of: the change or time at which memory is read.
        namespace: whose memory.
        group: the group of rollouts that the run belongs to; learnt from when `Memory.close_group` is called.
        rollout: its number in the group.
        write: `auto`; `deferred`: learnt from when its group is closed (without one, the group has the episode's
            id); `off`: recall only.
    """

    off: bool = False
    k: int | None = None
    budget_tokens: int | None = None
    as_of: int | float | None = None
    namespace: Scope | None = None
    group: str = ""
    rollout: int | None = None
    write: str | None = None


_NAMES = tuple(item.name for item in fields(Options))
_WRITES = ("auto", "deferred", "off")


def options_of(configurable: Mapping[str, Any] | None) -> Options:
    """The options in the configurable part of a configuration.

    Raises:
        ConfigError: an option that there is not, or a value that it cannot have.
    """
    given = (configurable or {}).get("remnant") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f'configurable["remnant"] {given!r}', accepted="a mapping of options")
    for name in given:
        if name not in _NAMES:
            raise unknown("option", str(name), _NAMES)
    options = Options(**given)
    if options.write is not None:
        check_write(options.write)
    for name in ("k", "budget_tokens"):
        check_count(name, getattr(options, name))
    return options


def check_write(write: str) -> str:
    """The way of writing, if it is one.

    Raises:
        ConfigError: it is none.
    """
    if write not in _WRITES:
        raise unknown("write", str(write), _WRITES)
    return write


def check_count(name: str, count: int | None) -> None:
    """Refuse what no count of records or tokens can be.

    Raises:
        ConfigError: it is not a positive integer.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ConfigError(f"{name} {count!r}", accepted="1 or more")


def run_options() -> Options | None:
    """The options of the run that this code is part of; None where they cannot be known.

    Raises:
        ConfigError: see `options_of`.
    """
    try:
        configurable = get_config().get("configurable")
    except RuntimeError:
        return None if sys.version_info < (3, 11) and _in_a_loop() else Options()
    return options_of(configurable)


def can_resume(thread: str | None) -> bool:
    """Whether another process may go on with this run: it has a thread, and checkpoints of it are kept.

    Args:
        thread: the run's, or None.
    """
    try:
        configurable = get_config().get("configurable") or {}
    except RuntimeError:
        configurable = {}
    return thread is not None and configurable.get(_SAVER, True) is not None


def _in_a_loop() -> bool:
    """Before Python 3.11 a node in async code does not see its configuration."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def scope_of(
    explicit: Scope | Callable[[Any], Scope] | None, options: Options | None, runtime: Runtime[Any] | Any, strict: bool
) -> str:
    """Whose memory a run reads and writes.

    The first that is there: the explicit scope, the option `namespace`, `context.user_id`, the server's user.
    A user's id becomes the scope `{"user": id}`, so that no id can pass for another scope.

    Args:
        explicit: the middleware's; may be a function of the runtime.
        options: of the run; None where they cannot be known.
        runtime: of the run.
        strict: never fall back to `DEFAULT_SCOPE`.

    Raises:
        ConfigError: nobody says whose memory it is, or it cannot be known.
    """
    if explicit is not None:
        return check_scope(explicit(runtime) if callable(explicit) else explicit)
    if options is None:
        do = "pass scope= to the memory, or use Python 3.11"
        raise ConfigError("async code on Python 3.10, where a run's namespace is not visible", do=do)
    if options.namespace:
        return check_scope(options.namespace)
    server = getattr(runtime, "server_info", None)
    user = _id(_field(getattr(runtime, "context", None), "user_id")) or _id(
        _field(getattr(server, "user", None), "identity")
    )
    if user:
        return check_scope({"user": user})
    if strict:
        raise ConfigError(
            "a run that does not say whose memory it is",
            accepted='scope=, configurable["remnant"]["namespace"], context.user_id or an authenticated user',
            do="name one of them; multi_tenant=True never falls back to a shared memory",
        )
    return DEFAULT_SCOPE


def _field(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _id(value: Any) -> str:
    """An id as text; empty for what is none."""
    return "" if value is None or isinstance(value, bool) else str(value).strip()
