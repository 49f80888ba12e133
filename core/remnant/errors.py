"""Every error that Remnant raises on purpose.

RemnantError
├── ConfigError         an option, name, budget or file is not one we accept
├── ShapeError          a tensor has the wrong shape, dtype or device
├── UnsupportedPolicy   a host cannot give what a policy needs, or cannot hold what it leaves
├── MissingExtra        an optional dependency is not installed; names the command that installs it
└── HostVersionError    a host framework has a version outside the supported range

Agent memory adds its own below the same base: `remnant.memory.errors`.

A message says three things: what was given, what is accepted, what to do. Where a built-in error
means the same, ours is also one of those (`ConfigError` is a `ValueError`), so that generic
handlers keep working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

_E = TypeVar("_E", bound="RemnantError")


class RemnantError(Exception):
    """Base of all errors raised on purpose.

    Args:
        given: what was given and what is wrong with it; a whole message on its own is fine.
        accepted: what would have been accepted, as text or as a list of names.
        do: what the reader should do next.

    Example: str(ConfigError("budget 0", accepted="1 or more")) -> "budget 0; accepted: 1 or more"
    """

    def __init__(self, given: str, *, accepted: str | Iterable[str] = "", do: str = "") -> None:
        """See the class."""
        super().__init__(given)
        self.given = given
        self.accepted = accepted if isinstance(accepted, str) else ", ".join(accepted)
        self.do = do

    def __str__(self) -> str:
        """The whole message on one line."""
        accepted = f"accepted: {self.accepted}" if self.accepted else ""
        return "; ".join(part for part in (self.given, accepted, self.do) if part)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by state: a subclass may take other arguments than its base."""
        return _restore, (type(self), dict(self.__dict__))

    def to_dict(self) -> dict[str, str]:
        """The error as data, for `--json` output."""
        parts = {"given": self.given, "accepted": self.accepted, "do": self.do}
        return {"type": type(self).__name__, "message": str(self), **parts}


class ConfigError(RemnantError, ValueError):
    """An option, name, budget or file that we do not accept."""


class ShapeError(RemnantError, ValueError):
    """A tensor of the wrong shape, dtype or device."""


class UnsupportedPolicy(RemnantError):
    """A policy that this host cannot serve; names both sides."""


class MissingExtra(RemnantError, ImportError):
    """An optional dependency that is not installed.

    Args:
        wanted_by: what needs it, for example `"remnant.kv"`.
        module: the module that could not be found.
        extra: the extra of this distribution that brings it.

    Example: str(MissingExtra("remnant.kv", "torch", "torch"))
        -> "remnant.kv needs torch, which is not installed; pip install 'remnant[torch]'"
    """

    def __init__(self, wanted_by: str, module: str, extra: str) -> None:
        """See the class."""
        super().__init__(f"{wanted_by} needs {module}, which is not installed", do=install_command(extra))
        self.extra = extra


class HostVersionError(RemnantError, ImportError):
    """A host framework whose version is outside the supported range.

    Args:
        host: the framework's distribution name, for example `"transformers"`.
        found: the version that is installed.
        supported: the range we support, for example `">=5.19,<6"`.
    """

    def __init__(self, host: str, found: str, supported: str) -> None:
        """See the class."""
        install = f"pip install '{host}{supported}'"
        super().__init__(f"{host} {found} is installed", accepted=supported, do=install)


def install_command(extra: str) -> str:
    """The command that installs one extra.

    Example: install_command("hf") -> "pip install 'remnant[hf]'"
    """
    return f"pip install 'remnant[{extra}]'"


def unknown(kind: str, given: str, accepted: Iterable[str], do: str = "") -> ConfigError:
    """A `ConfigError` for a name that is not among the accepted ones, with a near match if any.

    Args:
        kind: what the name names, for example `"policy"`.
        given: the name that was given.
        accepted: every accepted name.
        do: what to do; left out, the nearest accepted name is proposed.
    """
    names = sorted(accepted)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {kind} {given!r}", accepted=names or "none", do=do or hint)


def _restore(cls: type[_E], state: dict[str, Any]) -> _E:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    error.args = (state["given"],)
    return error
