"""Text on its way to a server and back: a server's text holds no NUL and no half of a surrogate pair, ours may.

These characters travel as an escape that begins with U+FDD0, which Unicode promises never to use; that character
itself is doubled. So different texts stay different, whatever they hold, and come back as they were.
"""

from __future__ import annotations

import re
from array import array
from typing import Any

from remnant.lazy import needs

with needs("postgres", wanted_by="a memory in PostgreSQL"):
    from psycopg import Connection
    from psycopg.adapt import Dumper, Loader
    from psycopg.pq import Format
    from psycopg.types import TypeInfo

_MARK = "\ufdd0"
_ODD = re.compile("[\x00\ud800-\udfff\ufdd0]")
_ESCAPE = re.compile("\ufdd0(\ufdd0|[0-9a-f]{4})")


def escaped(text: str) -> str:
    """A text that a server can hold; equal only for equal texts."""
    return _ODD.sub(lambda c: _MARK + (_MARK if c[0] == _MARK else f"{ord(c[0]):04x}"), text)


def unescaped(text: str) -> str:
    """The text that was escaped."""
    if _MARK not in text:
        return text
    return _ESCAPE.sub(lambda c: _MARK if c[1] == _MARK else chr(int(c[1], 16)), text)


class Vector(bytes):
    """A vector as a parameter: float32, little endian."""


class _TextDumper(Dumper):
    oid = 25

    def dump(self, obj: str) -> bytes:
        return escaped(obj).encode()


class _TextLoader(Loader):
    def load(self, data: Any) -> str:
        return unescaped(bytes(data).decode())


class _BinaryTextLoader(_TextLoader):
    format = Format.BINARY


class _VectorDumper(Dumper):
    """The wire format of pgvector: the size and a spare in 16 bits each, then float32, all big endian."""

    format = Format.BINARY

    def dump(self, obj: Vector) -> bytes:
        return (len(obj) // 4).to_bytes(2, "big") + b"\0\0" + _swapped(obj)


class _VectorLoader(Loader):
    format = Format.BINARY

    def load(self, data: Any) -> bytes:
        return _swapped(bytes(data)[4:])


def _swapped(blob: bytes) -> bytes:
    numbers = array("f", blob)
    numbers.byteswap()
    return numbers.tobytes()


def adapt(connection: Connection[Any], vector: TypeInfo | None) -> None:
    """Make a connection speak our texts and, where the server has the type, vectors."""
    adapters = connection.adapters
    adapters.register_dumper(str, _TextDumper)
    for name in ("text", "varchar"):
        adapters.register_loader(name, _TextLoader)
        adapters.register_loader(name, _BinaryTextLoader)
    if vector is not None:
        dumper = type("VectorDumper", (_VectorDumper,), {"oid": vector.oid})
        adapters.register_dumper(Vector, dumper)
        adapters.register_loader(vector.oid, _VectorLoader)
