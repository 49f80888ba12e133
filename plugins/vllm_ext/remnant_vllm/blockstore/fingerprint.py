"""How the bytes of a block are to be read: one hash of every fact that must agree before a block may be used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

__all__ = ["fingerprint", "stamp"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".npz")


def fingerprint(facts: Mapping[str, Any]) -> bytes:
    """32 bytes that differ as soon as one fact differs.

    Args:
        facts: plain data; what JSON cannot hold is taken as text.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).digest()


def stamp(path: str) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change (ns) of the weight files at a local path; empty for what is not there.

    New weights under an old name would else find blocks of the old ones. A copy of a model has another time of change
    unless that was kept, and then starts with an empty store: too careful rather than wrong.
    """
    if os.path.isfile(path):
        found = [path]
    elif os.path.isdir(path):
        found = [entry.path for entry in os.scandir(path) if entry.is_file() and entry.name.endswith(WEIGHTS)]
    else:
        return []
    facts = [(os.path.basename(name), os.stat(name)) for name in sorted(found)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts]
