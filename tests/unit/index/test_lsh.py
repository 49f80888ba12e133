"""TiM's buckets: the hash by hand, search after any history of changes, and what is lost on clustered vectors."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError, ShapeError
from remnant.index import DenseScan, Hyperplanes, LshIndex, pack

VECTOR = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)
CHANGES = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | VECTOR), max_size=40)


def _clustered(count: int, dim: int = 32) -> list[bytes]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, dim))
    return pack(centres[rng.integers(0, 40, count)] + 0.5 * rng.standard_normal((count, dim)))


def _apply(index: LshIndex, changes: list) -> dict[str, bytes]:
    held: dict[str, bytes] = {}
    for id, vector in changes:
        if vector is None:
            index.drop(id)
            held.pop(id, None)
        else:
            (held[id],) = pack([vector])
            index.put(id, held[id])
    return held


def test_the_bucket_is_the_nearest_of_the_directions_and_their_opposites():
    planes = Hyperplanes(3, buckets=4, tables=2, seed=7)
    directions = np.random.default_rng([7, 3, 4, 2]).standard_normal((3, 4)).astype("<f4")
    x = np.array([[0.5, -0.25, 1.0]], dtype="<f4")
    for table in range(2):
        r = directions[:, 2 * table : 2 * table + 2]
        expected = int(np.argmax(np.concatenate([x @ r, -(x @ r)], axis=1)))
        assert planes.codes(x)[table, 0] == expected
        assert planes.codes(-x)[table, 0] == (expected + 2) % 4


def test_the_same_seed_gives_the_same_buckets_in_another_process():
    code = "from remnant.index import LshIndex, pack; print(LshIndex(8, seed=3).bucket(pack([range(8)])[0]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (vector,) = pack([list(range(8))])
    assert int(done.stdout) == LshIndex(8, seed=3).bucket(vector)
    assert len({LshIndex(8, seed=seed).bucket(vector) for seed in range(20)}) > 5


@settings(max_examples=80, deadline=None)
@given(CHANGES, VECTOR, st.integers(1, 8))
def test_looking_at_all_is_the_exact_scan_after_any_changes(changes: list, query: list[float], k: int):
    for index in (LshIndex(4), LshIndex(4, buckets=4, share=1.0, small=0)):
        held = _apply(index, changes)
        exact = DenseScan(4)
        exact.load(list(held.items()))
        (packed,) = pack([query])
        found, expected = index.search(packed, k, also="az"), exact.search(packed, k, also="az")
        assert sorted(found.best.values()) == pytest.approx(sorted(expected.best.values()), abs=1e-6)
        assert found.of == pytest.approx(expected.of, abs=1e-6)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
        assert found.seen == len(held) == len(index)


@settings(max_examples=80, deadline=None)
@given(CHANGES, VECTOR)
def test_buckets_hold_exactly_what_hashes_into_them_after_any_changes(changes: list, query: list[float]):
    index = LshIndex(4, buckets=6, tables=2)
    held = _apply(index, changes)
    (packed,) = pack([query])
    for table in (0, 1):
        own = index.bucket(packed, table)
        assert set(index.members(packed, table)) == {id for id, v in held.items() if index.bucket(v, table) == own}
    fresh = LshIndex(4, buckets=6, tables=2)
    fresh.load(list(held.items()))
    assert sorted(fresh.members(packed)) == sorted(index.members(packed))


def test_members_come_closest_first():
    index = LshIndex(8, buckets=2, tables=1)
    vectors = _clustered(50, 8)
    index.load([(str(i), v) for i, v in enumerate(vectors)])
    ids = index.members(vectors[0])
    cosines = [float(np.frombuffer(vectors[int(id)], "<f4") @ np.frombuffer(vectors[0], "<f4")) for id in ids]
    assert ids[0] == "0"
    assert cosines == sorted(cosines, reverse=True)


def test_few_vectors_are_compared_and_little_is_lost():
    every = _clustered(6050, 64)
    vectors, asked = every[:6000], every[6000:]
    index, exact = LshIndex(64), DenseScan(64)
    for each in (index, exact):
        each.load([(str(i), v) for i, v in enumerate(vectors)])
    lost = 0
    for query in asked:
        found, expected = index.search(query, 10, also=["5"]), exact.search(query, 10, also=["5"])
        assert found.seen == 0.04 * len(vectors)
        assert found.of == pytest.approx(expected.of, abs=1e-6)
        assert -1e-6 < found.low - expected.low < 0.3
        assert list(found.best.values()) == sorted(found.best.values(), reverse=True)
        lost += len(expected.best.keys() - found.best.keys())
    assert lost <= 0.1 * 50 * 10


def test_codes_grow_with_the_vectors():
    vectors = _clustered(300, 8)
    index = LshIndex(8, small=0, share=1.0)
    for i, vector in enumerate(vectors):
        index.put(str(i), vector)
    assert list(index.search(vectors[9], 1).best) == ["9"]
    assert index.nbytes > 300 * (4 * 8 + 16)
    index.load([])
    assert (len(index), index.search(vectors[0], 3).best, index.members(vectors[0])) == (0, {}, [])


@pytest.mark.parametrize("bad", [{"buckets": 3}, {"buckets": 0}, {"buckets": 300}, {"tables": 0}, {"share": 1.5}])
def test_settings_outside_their_range_are_refused(bad: dict):
    with pytest.raises(ConfigError):
        LshIndex(4, **bad)


def test_a_vector_of_another_size_is_refused_and_changes_nothing():
    index = LshIndex(2)
    index.put("a", pack([[1.0, 0.0]])[0])
    for act in (index.bucket, index.members, lambda v: index.put("a", v), lambda v: index.search(v, 1)):
        with pytest.raises(ShapeError):
            act(b"\0" * 12)
    assert list(index.search(pack([[1.0, 0.0]])[0], 1).best.values()) == [1.0]
