"""Blocks in a folder that several processes may share: one file each, written whole or not at all, checked when read.

    <path>/remnant-1/<fingerprint>/<first byte of the key>/<key>.kv

Files appear by `os.replace` and may vanish at any time, because every process that shares the folder evicts by the
same rule: the file that was read or written longest ago goes first, by its time of change, which a read renews.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from remnant_vllm.blockstore.stats import Counts

__all__ = ["HEADER", "Disk", "decode", "encode_header"]

HEADER = struct.Struct("<8s32s32sQ32s")
"""Magic, fingerprint, key, bytes of the payload, and BLAKE2b of all these and the payload; little-endian."""
MAGIC = b"RMNTKV\x01\n"
FOLDER = "remnant-1"
STALE_S = 600.0
"""A temporary file of this age belongs to nobody any more, in seconds."""
SLACK = 16
"""The folder is read anew whenever this process has written 1/16 of the limit: others write too."""

_FINAL = re.compile(r"[0-9a-f]{64}\.kv")
_TEMP = re.compile(r"\.[0-9a-f]{64}\.\d+\.\d+\.tmp")


class Damaged(Exception):
    """A file that is not what was once written."""


class Foreign(Exception):
    """A sound file of something else."""


@dataclass
class _File:
    size: int
    used: int  # time of last use, ns


def encode_header(fingerprint: bytes, key: bytes, payload: memoryview) -> bytes:
    """What stands in front of a payload."""
    digest = _checksum(fingerprint, key, payload)
    return HEADER.pack(MAGIC, fingerprint, key, payload.nbytes, digest)


def decode(raw: memoryview, fingerprint: bytes, key: bytes, expected: int | None) -> memoryview:
    """The payload of a file.

    Args:
        raw: the whole file.
        fingerprint: what it must have been written under.
        key: what it must hold.
        expected: bytes its payload must have; None takes any.

    Raises:
        Damaged: cut short, padded or altered.
        Foreign: sound as far as the header tells, but not this block.
    """
    if raw.nbytes < HEADER.size:
        raise Damaged(f"{raw.nbytes} bytes")
    magic, owner, name, size, digest = HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise Damaged("no header")
    payload = raw[HEADER.size :]
    if size != payload.nbytes:
        raise Damaged(f"{payload.nbytes} of {size} bytes")
    if (owner, name) != (fingerprint, key) or (expected is not None and size != expected):
        raise Foreign(f"written under {owner.hex()[:16]}")
    if digest != _checksum(owner, name, payload):
        raise Damaged("checksum")
    return payload


def _checksum(fingerprint: bytes, key: bytes, payload: memoryview) -> bytes:
    hasher = hashlib.blake2b(MAGIC + fingerprint + key + payload.nbytes.to_bytes(8, "little"), digest_size=32)
    hasher.update(payload)
    return hasher.digest()


class Disk:
    """Bytes by key in a folder.

    Args:
        path: the folder; made if it is not there.
        limit: most bytes of all files in it, headers included, whoever wrote them. One process never exceeds it;
            with n processes at once it can be exceeded by n/16 of itself until each has looked again.
        fingerprint: 32 bytes; files written under another one are never used.
        counts: where everything is counted.
        expected: bytes that every payload has; None when they differ.
        fsync: whether to wait until a file is on the medium.

    Attributes:
        used: bytes of files that this process knows of.

    Raises:
        OSError: the folder cannot be made or read.
    """

    def __init__(
        self,
        path: str,
        limit: int,
        fingerprint: bytes,
        counts: Counts,
        expected: int | None = None,
        fsync: bool = False,
    ) -> None:
        """See the class."""
        self.root = os.path.join(path, FOLDER)
        self.limit, self.fingerprint, self.counts, self.expected, self.fsync = (
            limit,
            fingerprint,
            counts,
            expected,
            fsync,
        )
        self.used = 0
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._since_scan = 0
        self._numbers = itertools.count()
        self._lock = threading.RLock()
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        self.reconcile()

    def path(self, key: bytes) -> str:
        """Where the file of a block is, or would be."""
        return os.path.join(self.root, self._name(key))

    def _name(self, key: bytes) -> str:
        text = key.hex()
        return os.path.join(self.fingerprint.hex()[:32], text[:2], f"{text}.kv")

    def __contains__(self, key: bytes) -> bool:
        """Whether there is such a file; it has not been checked."""
        return os.path.exists(self.path(key))

    def read(self, key: bytes) -> memoryview | None:
        """A checked payload; what fails the check is deleted and counted.

        Returns:
            None when there is no such file, or it cannot be used.
        """
        path = self.path(key)
        try:
            payload = decode(self._slurp(path), self.fingerprint, key, self.expected)
        except FileNotFoundError:
            self._forget(self._name(key))
            return None
        except OSError:
            self.counts.add("disk_errors")
            return None
        except (Damaged, Foreign) as fault:
            self.counts.add("corrupt_files" if isinstance(fault, Damaged) else "foreign_files")
            self._delete(self._name(key))
            return None
        self.touch(key)
        self._note(self._name(key), HEADER.size + payload.nbytes)
        return payload

    def _slurp(self, path: str) -> memoryview:
        """A file as a buffer that can be written, because tensors are made on it; of a huge one only the beginning."""
        most = self.limit if self.expected is None else HEADER.size + self.expected
        with open(path, "rb") as file:
            raw = bytearray(min(os.fstat(file.fileno()).st_size, most + 1))
            read = file.readinto(raw)
        return memoryview(raw)[:read]

    def touch(self, key: bytes) -> bool:
        """Count as use; whether there is such a file."""
        try:
            os.utime(self.path(key))
        except OSError:
            return False
        return True

    def write(self, key: bytes, payload: memoryview) -> bool:
        """Write a block, evicting others as needed.

        Returns:
            Whether it is there now; if not, nothing of it is.
        """
        size = HEADER.size + payload.nbytes
        if size > self.limit:
            return False
        if self._since_scan > self.limit // SLACK:
            self.reconcile()
        temporary = self._temporary(key)
        with self._lock:
            self._make_room(size)
            self.used += size  # reserved: a second thread must not fill the same room
        try:
            _spill(temporary, encode_header(self.fingerprint, key, payload), payload, self.fsync)
            os.replace(temporary, self.path(key))
        except OSError:
            self.counts.add("disk_errors")
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            with self._lock:
                self.used -= size
            return False
        with self._lock:
            self.used -= size
            self._note(self._name(key), size)
            self._since_scan += size
        self.counts.add("written_blocks")
        self.counts.add("written_bytes", size)
        return True

    def _temporary(self, key: bytes) -> str:
        folder, name = os.path.split(self.path(key))
        return os.path.join(folder, f".{name[:-3]}.{os.getpid()}.{next(self._numbers)}.tmp")

    def reconcile(self) -> None:
        """Read the folder: what others wrote or deleted, what was left behind; then make the limit hold."""
        found = sorted(self._walk(), key=lambda item: item[1].used)
        with self._lock:
            self._files = OrderedDict(found)
            self.used = sum(file.size for file in self._files.values())
            self._since_scan = 0
            self._make_room(0)

    def _walk(self) -> Iterator[tuple[str, _File]]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                final = _FINAL.fullmatch(name)
                if not final and not _TEMP.fullmatch(name):
                    continue
                with contextlib.suppress(OSError):
                    stat = os.stat(path)
                    if final:
                        yield os.path.relpath(path, self.root), _File(stat.st_size, stat.st_mtime_ns)
                    elif time.time() - stat.st_mtime > STALE_S:
                        os.unlink(path)  # its writer died

    def _make_room(self, size: int) -> None:
        """Delete the least recently used until `size` more bytes fit."""
        while self.used + size > self.limit and self._files:
            name, file = next(iter(self._files.items()))
            try:
                used = os.stat(os.path.join(self.root, name)).st_mtime_ns
            except OSError:
                self._forget(name)  # another process evicted it
                continue
            if used > file.used:  # another process read it since
                file.used = used
                self._files.move_to_end(name)
                continue
            self._delete(name)
            self.counts.add("disk_evicted")

    def _note(self, name: str, size: int) -> None:
        with self._lock:
            self._forget(name)
            self._files[name] = _File(size, time.time_ns())
            self.used += size

    def _forget(self, name: str) -> None:
        with self._lock:
            known = self._files.pop(name, None)
            if known is not None:
                self.used -= known.size

    def _delete(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self.root, name))
        self._forget(name)


def _spill(path: str, header: bytes, payload: memoryview, fsync: bool) -> None:
    """Write a new file, with its folder if need be."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    try:
        handle = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        handle = os.open(path, flags, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(header)
        file.write(payload)
        if fsync:
            file.flush()
            os.fsync(file.fileno())
