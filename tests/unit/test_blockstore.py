"""The block store: bounded in memory and on disk, shared between processes, and never fooled by a bad file."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant_vllm.blockstore import BlockStore, Chain, Counts, Disk, Host, Leased, StoreOptions, fingerprint, stamp
from remnant_vllm.blockstore import disk as disk_module
from remnant_vllm.blockstore.disk import HEADER

MINE, OTHER = fingerprint({"model": "a"}), fingerprint({"model": "b"})
SIZE = 1000
FILE = SIZE + HEADER.size


def key(n: int) -> bytes:
    return hashlib.sha256(str(n).encode()).digest()


def block(n: int, size: int = SIZE) -> memoryview:
    return memoryview(bytearray((n + i) % 251 for i in range(size)))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


@pytest.fixture
def make_disk(tmp_path: Path) -> Any:
    def make(limit: int = 10 * FILE, owner: bytes = MINE, **kwargs: Any) -> Disk:
        return Disk(str(tmp_path), limit, owner, Counts(), **{"expected": SIZE, **kwargs})

    return make


@pytest.fixture
def make_store(tmp_path: Path) -> Any:
    made: list[BlockStore] = []

    def make(owner: bytes = MINE, size: int | None = SIZE, **options: Any) -> BlockStore:
        given = {"path": str(tmp_path), "host_bytes": 10 * SIZE, "disk_bytes": 100 * FILE, **options}
        made.append(BlockStore(StoreOptions.parse(given), owner, size))
        return made[-1]

    yield make
    for store in made:
        store.close()


# Keys


def test_a_key_depends_on_everything_before_it() -> None:
    one = Chain("prefix", 2).grow([1, 2, 3, 4, 5, 6], 3)
    assert one[:1] == Chain("prefix", 2).grow([1, 2, 9, 9, 9, 9], 1)
    other = Chain("prefix", 2).grow([1, 2, 9, 4, 5, 6], 3)
    assert one[0] == other[0]
    assert not set(one[1:]) & set(other[1:])
    assert len(set(one)) == 3
    assert all(len(name) == 32 for name in one)


def test_growing_in_steps_gives_the_same_keys() -> None:
    tokens = list(range(100, 140))
    at_once, bit_by_bit = Chain("n", 4), Chain("n", 4)
    wanted = at_once.grow(tokens, 10)
    for blocks in (1, 1, 3, 10):
        assert bit_by_bit.grow(tokens[: blocks * 4 + 1], blocks) == wanted[:blocks]
    assert at_once.grow(tokens, 2) == wanted[:2]


def test_namespace_salt_adapter_size_and_pictures_keep_apart() -> None:
    tokens = [1, 2, 3, 4]
    roots = [
        Chain("a", 2),
        Chain("b", 2),
        Chain("a", 4),
        Chain("a", 2, [("salt", "x")]),
        Chain("a", 2, [("sal", "tx")]),
        Chain("a", 2, [("lora", "x", "path")]),
        Chain("a", 2, [("lora", "x"), ("path",)]),
    ]
    assert len({root.grow(tokens, 1)[0] for root in roots}) == len(roots)
    plain = Chain("a", 2).grow(tokens, 2)
    first = Chain("a", 2).grow(tokens, 2, lambda start, end: [("mm", "cat", "0")] if start == 0 else [])
    second = Chain("a", 2).grow(tokens, 2, lambda start, end: [("mm", "cat", "0")] if start == 2 else [])
    assert len({plain[1], first[1], second[1]}) == 3
    assert second[0] == plain[0]


def test_too_few_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 tokens do not fill 2 blocks of 2"):
        Chain("a", 2).grow([1, 2, 3], 2)


def test_new_weights_have_another_stamp(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"old")
    (tmp_path / "README.md").write_text("not a weight")
    before = stamp(str(tmp_path))
    assert [name for name, *_ in before] == ["model.safetensors"]
    assert stamp(str(tmp_path)) == before
    os.utime(weights, ns=(0, before[0][2] + 1))
    assert stamp(str(tmp_path)) != before
    assert stamp("nobody/nothing") == []
    assert stamp(str(weights)) == stamp(str(tmp_path))


# Memory


@settings(max_examples=200, deadline=None)
@given(
    limit=st.integers(0, 30),
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "get", "pin", "unpin"]), st.integers(0, 7), st.integers(1, 12)), max_size=60
    ),
)
def test_memory_is_least_recently_used_within_its_limit(limit: int, steps: list[tuple[str, int, int]]) -> None:
    """Against a list that does the same slowly."""
    host = Host(limit, Counts())
    model: OrderedDict[int, int] = OrderedDict()
    pins: list[int] = []
    for what, n, size in steps:
        if what == "put":
            fits = n in model or size + sum(model[i] for i in set(pins)) <= limit
            if n in model:
                model.move_to_end(n)
            elif fits:
                while sum(model.values()) + size > limit:
                    del model[next(i for i in model if i not in pins)]
                model[n] = size
            assert host.put(key(n), block(n, size)) == fits
        elif what == "get":
            found = host.get(key(n))
            assert (found is not None) == (n in model)
            if found is not None:
                model.move_to_end(n)
                assert found == block(n, model[n])
        elif what == "pin" and n in model:
            host.pin(key(n))
            pins.append(n)
        elif what == "unpin" and n in pins:
            host.unpin(key(n))
            pins.remove(n)
        assert host.used == sum(model.values()) <= limit
        assert host.pinned == sum(model[i] for i in set(pins))
        assert {n for n in range(8) if key(n) in host} == set(model)


# Disk


def test_written_blocks_come_back(make_disk: Any, tmp_path: Path) -> None:
    disk = make_disk()
    assert disk.write(key(1), block(1))
    assert make_disk().read(key(1)) == block(1)
    assert disk.read(key(2)) is None
    assert disk.used == on_disk(tmp_path) == FILE
    assert disk.counts.news() == {"written_blocks": 1, "written_bytes": FILE}
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / disk_module.FOLDER).stat().st_mode) == 0o700


DAMAGE = {
    "a flipped bit in the payload": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "a flipped bit in the checksum": lambda raw: raw[:100] + bytes([raw[100] ^ 1]) + raw[101:],
    "another magic": lambda raw: b"X" + raw[1:],
    "cut short": lambda raw: raw[:-1],
    "cut in the header": lambda raw: raw[:50],
    "nothing left": lambda raw: b"",
    "something on top": lambda raw: raw + b"x",
    "a huge claim": lambda raw: raw[:72] + (1 << 60).to_bytes(8, "little") + raw[80:],
    "zeros": lambda raw: bytes(len(raw)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_dropped(name: str, make_disk: Any, tmp_path: Path) -> None:
    make_disk().write(key(1), block(1))
    (path,) = files(tmp_path)
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    disk = make_disk()
    assert disk.read(key(1)) is None
    assert disk.counts.news() == {"corrupt_files": 1}
    assert files(tmp_path) == []
    assert disk.used == 0
    assert disk.write(key(1), block(1))
    assert disk.read(key(1)) == block(1)


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, FILE - 1), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(at: int, bit: int) -> None:
    raw = bytearray(disk_module.encode_header(MINE, key(1), block(1)) + bytes(block(1)))
    assert disk_module.decode(memoryview(raw), MINE, key(1), SIZE) == block(1)
    raw[at] ^= 1 << bit
    with pytest.raises((disk_module.Damaged, disk_module.Foreign)):
        disk_module.decode(memoryview(raw), MINE, key(1), SIZE)


def test_foreign_files_are_dropped(make_disk: Any, tmp_path: Path) -> None:
    theirs = make_disk(owner=OTHER)
    theirs.write(key(1), block(1))
    mine = make_disk()
    assert mine.read(key(1)) is None
    assert mine.counts.news() == {}, "under its own name, it is simply not ours"
    os.makedirs(os.path.dirname(mine.path(key(1))))
    os.replace(theirs.path(key(1)), mine.path(key(1)))
    assert mine.read(key(1)) is None
    mine.write(key(2), block(2))
    os.makedirs(os.path.dirname(mine.path(key(3))), exist_ok=True)
    os.replace(mine.path(key(2)), mine.path(key(3)))
    assert mine.read(key(3)) is None
    make_disk(expected=SIZE + 8).write(key(4), block(4, SIZE + 8))
    assert mine.read(key(4)) is None
    assert mine.counts.total["foreign_files"] == 2
    assert mine.counts.total["corrupt_files"] == 1, "longer than ours can be: not read to its end"
    assert files(tmp_path) == []


def test_other_peoples_files_are_left_alone(make_disk: Any, tmp_path: Path) -> None:
    disk = make_disk(limit=FILE)
    notes = tmp_path / disk_module.FOLDER / "notes.txt"
    notes.write_text("mine")
    for n in range(3):
        disk.write(key(n), block(n))
    make_disk(limit=0)
    assert files(tmp_path) == [notes]


def test_the_folder_never_outgrows_its_limit(make_disk: Any, tmp_path: Path) -> None:
    disk = make_disk(limit=3 * FILE + 5)
    for n in range(8):
        assert disk.write(key(n), block(n))
        assert disk.used == on_disk(tmp_path) <= disk.limit
        time.sleep(0.002)
        if n >= 2:
            assert disk.read(key(2)) is not None, "what is used stays"
    assert disk.counts.total["disk_evicted"] == 5
    assert not disk.write(key(9), block(9, 4 * FILE))
    assert not make_disk(limit=0).write(key(9), block(9))


def test_a_later_engine_makes_the_limit_hold_oldest_first(make_disk: Any) -> None:
    disk = make_disk()
    for n in range(6):
        disk.write(key(n), block(n))
        os.utime(disk.path(key(n)), ns=(0, (10 - n) * 10**9))
    later = make_disk(limit=2 * FILE)
    assert [n for n in range(6) if key(n) in later] == [0, 1]
    assert later.used == 2 * FILE


def test_use_by_another_process_counts(make_disk: Any) -> None:
    disk = make_disk(limit=2 * FILE)
    disk.write(key(1), block(1))
    disk.write(key(2), block(2))
    time.sleep(0.01)
    assert make_disk(limit=2 * FILE).read(key(1)) == block(1)
    disk.write(key(3), block(3))
    assert [n for n in (1, 2, 3) if key(n) in disk] == [1, 3]


def test_files_may_vanish_at_any_time(make_disk: Any, tmp_path: Path) -> None:
    disk = make_disk(limit=2 * FILE)
    for n in range(2):
        disk.write(key(n), block(n))
        os.unlink(disk.path(key(n)))
    assert disk.read(key(0)) is None
    assert disk.write(key(2), block(2))
    assert disk.write(key(3), block(3))
    assert disk.used == on_disk(tmp_path) == 2 * FILE
    assert disk.counts.total["disk_evicted"] == 0
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert disk.read(key(2)) is None
    assert disk.write(key(2), block(2)), "folders are made again"
    assert disk.counts.total["disk_errors"] == 0


def test_left_over_temporary_files_go_and_young_ones_stay(make_disk: Any, tmp_path: Path) -> None:
    disk = make_disk()
    disk.write(key(1), block(1))
    folder = Path(disk.path(key(1))).parent
    old, young = folder / f".{key(2).hex()}.1.0.tmp", folder / f".{key(3).hex()}.1.0.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - disk_module.STALE_S - 1))
    make_disk()
    assert not old.exists()
    assert young.exists()


def test_errors_are_counted_and_leave_nothing_behind(
    make_disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = make_disk()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_module.os, "replace", full)
    assert not disk.write(key(1), block(1))
    monkeypatch.undo()
    assert files(tmp_path) == []
    assert disk.used == 0
    assert disk.counts.news() == {"disk_errors": 1}
    os.makedirs(disk.path(key(2)))  # a folder where a file should be
    assert disk.read(key(2)) is None
    assert disk.counts.news() == {"disk_errors": 1}


def test_fsync_writes_the_same(make_disk: Any) -> None:
    disk = make_disk(fsync=True)
    assert disk.write(key(1), block(1))
    assert disk.read(key(1)) == block(1)


def _child(folder: Path, seed: int, limit: int) -> subprocess.Popen[str]:
    """A process that writes and reads 300 of 40 blocks in its own order and says what it saw."""
    code = f"""
import hashlib, random
from remnant_vllm.blockstore import Counts, Disk
key = lambda n: hashlib.sha256(str(n).encode()).digest()
block = lambda n: memoryview(bytearray((n + i) % 251 for i in range({SIZE})))
disk = Disk({str(folder)!r}, {limit}, bytes.fromhex({MINE.hex()!r}), Counts(), {SIZE})
source = random.Random({seed})
for _ in range(300):
    n = source.randrange(40)
    found = disk.read(key(n))
    assert found is None or found == block(n), n
    if found is None:
        assert disk.write(key(n), block(n))
total = disk.counts.total
print(total["corrupt_files"], total["foreign_files"], total["disk_errors"], total["written_blocks"])
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    limit = 16 * FILE
    children = [_child(tmp_path, seed, limit) for seed in (1, 2)]
    for child in children:
        out, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        corrupt, foreign, errors, written = map(int, out.split())
        assert (corrupt, foreign, errors) == (0, 0, 0)
        assert written > 0
    assert on_disk(tmp_path) <= limit * (1 + 2 / disk_module.SLACK) + FILE
    assert not list(tmp_path.rglob("*.tmp"))
    assert Disk(str(tmp_path), limit, MINE, Counts(), SIZE).used <= limit


# Both


def test_a_lease_keeps_blocks_in_memory(make_store: Any) -> None:
    store = make_store(path=None, disk_bytes=0, host_bytes=4 * SIZE)
    for n in range(4):
        store.put(key(n), block(n))
    assert store.lease("r", [key(0), key(1), key(9), key(2)]) == Leased(2, 0)
    for n in range(10, 14):
        store.put(key(n), block(n))
    assert store.get(key(0)) == block(0)
    assert store.get(key(1)) == block(1)
    assert store.get(key(2)) is None
    assert store.lease("s", [key(12), key(13), key(0)]) == Leased(3, 0)
    assert store.gauges()["host_bytes"] == 4 * SIZE
    store.put(key(20), block(20))
    assert store.counts.total["host_full"] == 1, "everything is in use"
    for owner in ("r", "s", "nobody"):
        store.release(owner)
        store.release(owner)
    store.put(key(20), block(20))
    assert store.get(key(20)) == block(20)
    assert store.gauges()["host_bytes"] <= 4 * SIZE


def test_a_lease_replaces_the_one_before(make_store: Any) -> None:
    store = make_store(path=None, disk_bytes=0, host_bytes=2 * SIZE)
    store.put(key(0), block(0))
    assert store.lease("r", [key(0)]).blocks == 1
    assert store.lease("r", [key(0)]).blocks == 1
    assert store.leased("r") == 1
    assert store.lease("r", []) == Leased(0, 0)
    assert store.leased("r") == 0
    for n in (1, 2):
        store.put(key(n), block(n))
    assert store.get(key(0)) is None


def test_a_later_store_reads_what_an_earlier_one_wrote(make_store: Any) -> None:
    first = make_store()
    for n in range(5):
        first.put(key(n), block(n))
    first.close()
    second = make_store()
    assert second.lease("r", [key(n) for n in range(6)]) == Leased(5, 5)
    assert second.lease("s", [key(n) for n in range(6)]) == Leased(5, 0)
    assert second.counts.total["disk_hits"] == second.counts.total["host_hits"] == 5
    assert second.counts.total["misses"] == 2
    assert make_store(owner=OTHER).lease("r", [key(0)]) == Leased(0, 0)


def test_a_lease_is_no_longer_than_memory(make_store: Any) -> None:
    store = make_store()
    for n in range(8):
        store.put(key(n), block(n))
    store.close()
    small = make_store(host_bytes=3 * SIZE + 1)
    assert small.lease("r", [key(n) for n in range(8)]) == Leased(3, 3)
    assert small.gauges()["host_bytes"] == 3 * SIZE


def test_a_bad_file_ends_the_lease_and_is_written_again(make_store: Any, tmp_path: Path) -> None:
    store = make_store()
    for n in range(3):
        store.put(key(n), block(n))
    store.close()
    victim = Path(Disk(str(tmp_path), 100 * FILE, MINE, Counts()).path(key(1)))
    victim.write_bytes(victim.read_bytes()[:-3])
    later = make_store()
    assert later.missing([key(n) for n in range(3)]) == [], "nobody has looked inside yet"
    assert later.lease("r", [key(n) for n in range(3)]) == Leased(1, 1)
    assert later.counts.total["corrupt_files"] == 1
    assert later.missing([key(n) for n in range(3)]) == [1]
    later.put(key(1), block(1))
    assert later.flush(10)
    assert make_store().lease("r", [key(n) for n in range(3)]) == Leased(3, 3)


def test_what_only_memory_has_is_written_again(make_store: Any) -> None:
    store = make_store()
    store.put(key(1), block(1))
    assert store.flush(10)
    os.unlink(store._disk.path(key(1)))
    assert store.missing([key(1)]) == []
    assert store.flush(10)
    assert key(1) in store._disk


def test_blocks_that_wait_for_the_disk_can_be_had(make_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a full queue drops, and counts."""
    store = make_store(host_bytes=SIZE, pending_bytes=3 * SIZE)
    write, allowed = store._disk.write, []
    monkeypatch.setattr(store._disk, "write", lambda *a: _when(allowed) and write(*a))
    for n in range(5):
        store.put(key(n), block(n))
    assert store.gauges() == {"host_bytes": SIZE, "disk_bytes": 0, "pending_bytes": 3 * SIZE}
    assert store.get(key(1)) == block(1)
    assert store.counts.total["unwritten_blocks"] == 2
    assert not store.flush(0.01)
    allowed.append(True)
    assert store.flush(10)
    assert store.counts.total["written_blocks"] == 3
    assert store.gauges()["pending_bytes"] == 0


def _when(allowed: list[bool]) -> bool:
    while not allowed:
        time.sleep(0.001)
    return True


def test_shutdown_does_not_wait_for_ever(make_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store, allowed = make_store(), []
    monkeypatch.setattr(store._disk, "write", lambda *a: _when(allowed))
    store.put(key(1), block(1))
    store.close(0.01)
    assert store.counts.total["unwritten_blocks"] == 1
    store.close(0.01)
    store.put(key(2), block(2))
    assert store.counts.total["unwritten_blocks"] == 2, "closed means closed"
    allowed.append(True)


def test_a_disk_too_small_or_broken_costs_only_the_disk(make_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(disk_bytes=FILE - 1)
    store.put(key(1), block(1))
    assert store.flush(10)
    assert store.counts.total["unwritten_blocks"] == 1
    assert store.get(key(1)) == block(1)

    def broken(*args: Any) -> bool:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(store._disk, "write", broken)
    store.put(key(2), block(2))
    assert store.flush(10)
    assert store.counts.total["unwritten_blocks"] == 2


def test_what_waits_is_written_when_the_interpreter_ends(tmp_path: Path) -> None:
    code = f"""
from remnant_vllm.blockstore import BlockStore, StoreOptions
store = BlockStore(StoreOptions(path={str(tmp_path)!r}, disk_bytes=10**9), bytes(32))
for n in range(50):
    store.put(bytes([n]) * 32, memoryview(bytearray(10000)))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert len(files(tmp_path)) == 50


# Options


def test_options() -> None:
    options = StoreOptions.parse({"path": "/x"})
    assert (options.host_bytes, options.disk_bytes) == (1 << 30, 16 << 30)
    assert StoreOptions.parse({}).disk_bytes == 0
    assert StoreOptions.parse({"path": "/x", "disk_bytes": 0}).disk_bytes == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hots_bytes": 1}, "unknown key in kv_connector_extra_config: 'hots_bytes'.*did you mean 'host_bytes'"),
        ({"host_bytes": 0}, "host_bytes=0"),
        ({"host_bytes": "8G"}, "host_bytes='8G'; accepted: an integer of at least 0, in bytes"),
        ({"host_bytes": True}, "host_bytes=True"),
        ({"path": "/x", "disk_bytes": -1}, "disk_bytes=-1"),
        ({"disk_bytes": 1}, "disk_bytes=1 without a path"),
        ({"path": ""}, "path=''"),
        ({"path": 3}, "path=3"),
        ({"fsync": 1}, "fsync=1; accepted: true, false"),
        ({"namespace": 1}, "namespace=1"),
        ([], "kv_connector_extra_config is list"),
    ],
)
def test_bad_options_are_named(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StoreOptions.parse(given)


def test_memory_for_less_than_a_block_is_refused(make_store: Any) -> None:
    with pytest.raises(ConfigError, match="host_bytes=999 is less than one block; accepted: at least 1000"):
        make_store(host_bytes=SIZE - 1)
