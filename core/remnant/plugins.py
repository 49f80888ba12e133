"""Load plugins and gather what they bring; a broken plugin is reported, never fatal.

Plugins are found through the entry-point group `remnant`. `REMNANT_PLUGINS` selects them by name:
`REMNANT_PLUGINS=hf,mine` loads two, `REMNANT_PLUGINS=` none; the built-ins are always there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from remnant import builtins, hookspecs
from remnant.errors import ConfigError
from remnant.hosts import HOSTS, Status, host_status

GROUP = "remnant"
SELECT = "REMNANT_PLUGINS"
BUILTIN = "builtin"


class Plugins:
    """The loaded plugins, and why the others are not.

    Args:
        points: the entry points to load; each is loaded on its own.
        select: names to load, as `REMNANT_PLUGINS` holds them; None loads all.
    """

    def __init__(self, points: Iterable[EntryPoint], select: str | None = None) -> None:
        """See the class."""
        self.failures: dict[str, str] = {}
        self.found: list[str] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(builtins, BUILTIN)
        wanted = None if select is None else {name.strip() for name in select.split(",")}
        for point in points:
            self.found.append(point.name)
            if wanted is None or point.name in wanted:
                self._load(point)
            else:
                self.failures[point.name] = f"not named in {SELECT}"

    def loaded(self) -> list[str]:
        """Names of the plugins that were loaded, the built-ins left out."""
        return [name for name, _ in self._manager.list_name_plugin() if name != BUILTIN]

    def collect(self, hook: str, only: str | None = None) -> list[tuple[str, Any]]:
        """Call one hook of every plugin, each guarded by itself.

        Args:
            hook: a name from `remnant.hookspecs`.
            only: call this plugin alone.

        Returns:
            (plugin name, item) pairs, built-ins first. Of two items with one name the first
            stays and the second is reported.

        Raises:
            ConfigError: there is no such hook.
            MissingExtra: a built-in needs a package that is not installed.
        """
        pairs: list[tuple[str, Any]] = []
        for implementation in self._implementations(hook):
            plugin = implementation.plugin_name
            if only in (None, plugin):
                taken = {item.name for _, item in pairs}
                pairs += [(plugin, item) for item in self._call(implementation, taken)]
        return pairs

    def check(self) -> None:
        """Call every hook of the plugins that are not ours, so that their faults are known."""
        ours = {host.name for host in HOSTS}
        for plugin in self.loaded():
            if plugin not in ours:
                for hook in hook_names():
                    self.collect(hook, only=plugin)

    def _load(self, point: EntryPoint) -> None:
        try:
            self._manager.register(point.load(), point.name)
        except Exception as error:  # whatever it is, it is that plugin's and must stay there
            self.failures[point.name] = _reason(error)

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        if hook not in hook_names():
            raise ConfigError(f"no hook {hook!r}", accepted=hook_names())
        return getattr(self._manager.hook, hook).get_hookimpls()

    def _call(self, implementation: pluggy.HookImpl, taken: set[str]) -> list[Any]:
        """The items of one implementation; a fault of a built-in is ours and passes."""
        plugin = implementation.plugin_name
        try:
            return _checked(implementation.function(), taken)
        except Exception as error:
            if plugin == BUILTIN:
                raise
            self.failures[plugin] = _reason(error)
            return []


def hook_names() -> list[str]:
    """Every hook that a plugin can implement."""
    return [name for name in vars(hookspecs) if name.startswith("remnant_")]


@cache
def plugins() -> Plugins:
    """The plugins of this process, loaded on first use."""
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return Plugins(found, os.environ.get(SELECT))


def collect(hook: str) -> list[tuple[str, Any]]:
    """Every item that one hook brings, with the plugin it comes from; see `Plugins.collect`.

    Example: collect("remnant_systems")[0] -> ("builtin", System(number=1, name="SnapKV", ...))
    """
    return plugins().collect(hook)


def status() -> list[Status]:
    """One row per known host and per third-party plugin: ready, off or planned, and why."""
    state = plugins()
    state.check()
    hosts = [host_status(host, state.found, state.failures) for host in HOSTS]
    known = {host.name for host in HOSTS}
    return hosts + [_third_party(name, state) for name in state.found if name not in known]


def _third_party(name: str, state: Plugins) -> Status:
    reason = state.failures.get(name, "")
    return Status(name, "off" if reason else "ready", reason)


def _checked(items: Any, taken: set[str]) -> list[Any]:
    checked: list[Any] = list(items)
    for item in checked:
        name = getattr(item, "name", None)
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{item!r} has no name", do="give it a class attribute `name`")
        if name in taken:
            raise ConfigError(f"the name {name!r} is already taken", do="choose another name")
        taken.add(name)
    return checked


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
