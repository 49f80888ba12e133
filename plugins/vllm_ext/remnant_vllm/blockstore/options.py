"""What the user gave in `kv_connector_extra_config`, checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from remnant.errors import ConfigError, unknown

__all__ = ["StoreOptions"]

GIB = 1 << 30


@dataclass(frozen=True)
class StoreOptions:
    """Where blocks are kept, and how much of them.

    Attributes:
        path: folder; None keeps blocks in memory only. Any number of engines may share one.
        host_bytes: most bytes of blocks in memory, all workers of the engine together. What a request reuses must be
            in memory at once, so this also bounds the longest prefix that can be loaded.
        disk_bytes: most bytes of files in the folder, whoever wrote them; 0 writes and reads none.
        pending_bytes: most bytes that wait to be written, per worker; what comes on top is not written, and counted.
        fsync: whether a file must be on the medium before it counts. Without it a power cut may leave damaged files,
            which are found and dropped.
        namespace: engines with different ones share nothing.
    """

    path: str | None = None
    host_bytes: int = GIB
    disk_bytes: int = 0
    pending_bytes: int = GIB // 4
    fsync: bool = False
    namespace: str = ""

    @staticmethod
    def parse(given: object) -> StoreOptions:
        """Check a mapping; with a path, `disk_bytes` defaults to 16 GiB.

        Raises:
            ConfigError: a key is unknown, a value is of the wrong kind or out of range, or the parts do not fit.
        """
        where = "kv_connector_extra_config"
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where} is {type(given).__name__}", accepted="a mapping")
        keys = dict(cast("Mapping[str, Any]", given))
        accepted = {field.name for field in fields(StoreOptions)}
        for key in keys:
            if key not in accepted:
                raise unknown(f"key in {where}:", key, accepted)
        if keys.get("path") is not None:
            keys.setdefault("disk_bytes", 16 * GIB)
        options = StoreOptions(**keys)
        options._check(where)
        return options

    def _check(self, where: str) -> None:
        for name in ("host_bytes", "disk_bytes", "pending_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"{where}: {name}={value!r}", accepted="an integer of at least 0, in bytes")
        if not isinstance(self.fsync, bool):
            raise ConfigError(f"{where}: fsync={self.fsync!r}", accepted="true, false")
        if not isinstance(self.namespace, str):
            raise ConfigError(f"{where}: namespace={self.namespace!r}", accepted="text")
        if self.path is not None and not (isinstance(self.path, str | os.PathLike) and str(self.path)):
            raise ConfigError(f"{where}: path={self.path!r}", accepted="a folder")
        if self.disk_bytes and self.path is None:
            raise ConfigError(f"{where}: disk_bytes={self.disk_bytes} without a path", do="add path, or leave it out")
        if not self.host_bytes:
            raise ConfigError(f"{where}: host_bytes=0", accepted="at least one block: a hit passes through memory")
