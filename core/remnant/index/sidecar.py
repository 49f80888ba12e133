"""A file beside the store that holds an index, so that the next process need not build it: a cache, never the source.

One line of JSON (what it was built from, and sizes), ids as JSON, the parts of the index, and over all
of it a SHA-256. A file that does not fit, or is damaged, counts as no file. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

FORMAT = "remnant-index-1"

_LONGEST_HEAD = 4096

Buffer = bytes | bytearray


def write(path: Path, made_of: Mapping[str, Any], ids: Sequence[Sequence[str]], blobs: Sequence[Buffer]) -> None:
    """Put a file in place as a whole; whoever reads meanwhile sees the old one.

    Args:
        path: where; only the user of this process may read it.
        made_of: what the index was built from, as JSON data.
        ids: lists of ids.
        blobs: the parts of the index.

    Raises:
        OSError: it cannot be written.
    """
    names = json.dumps([list(part) for part in ids]).encode()
    head = {"format": FORMAT, **made_of, "ids": len(names), "bytes": [len(blob) for blob in blobs]}
    half = path.with_name(f"{path.name}.{os.getpid()}.half")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            check = hashlib.sha256()
            for part in (json.dumps(head).encode() + b"\n", names, *blobs):
                check.update(part)
                file.write(part)
            file.write(check.digest())
        os.replace(half, path)
    except OSError:
        half.unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[dict[str, Any], list[list[str]], list[bytes]] | None:
    """(what it was built from, ids, parts) of a whole and undamaged file, else None."""
    try:
        data = path.read_bytes()
        start = data.index(b"\n", 0, _LONGEST_HEAD) + 1
        head: dict[str, Any] = json.loads(data[:start])
        sizes = [int(head.pop("ids")), *map(int, head.pop("bytes"))]
        end = start + sum(sizes)
        whole = len(data) == end + 32 and hashlib.sha256(memoryview(data)[:end]).digest() == data[end:]
        if not whole or head.pop("format") != FORMAT or min(sizes) < 0:
            return None
        ends = [start + sum(sizes[: i + 1]) for i in range(len(sizes))]
        ids: list[list[str]] = json.loads(data[start : ends[0]])
        return head, ids, [data[first:last] for first, last in pairwise(ends)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
