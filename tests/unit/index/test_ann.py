"""The graph of neighbours: what is beside it, what changes while it is built, and the file it is kept in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError, ShapeError
from remnant.index import AnnIndex, DenseScan, KeptIndex, check_index, choose, chosen, make_index, pack, sidecar

VECTOR = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4).filter(lambda v: sum(x * x for x in v) > 0.01)
CHANGES = st.lists(st.tuples(st.sampled_from("abcdefghij"), st.none() | VECTOR), max_size=40)


def _vectors(count: int, dim: int = 24, seed: int = 0) -> list[bytes]:
    return pack(np.random.default_rng(seed).standard_normal((count, dim)))


def _named(vectors: list[bytes]) -> list[tuple[str, bytes]]:
    return [(str(i), vector) for i, vector in enumerate(vectors)]


@settings(max_examples=60, deadline=None)
@given(CHANGES, CHANGES, VECTOR, st.integers(1, 12), st.integers(0, 4))
def test_it_is_the_exact_scan_of_few_vectors_after_any_changes(before, after, query, k, most_beside):
    """Few enough that the graph holds them all as neighbours; changes come before, while and after it is built."""
    index, held = AnnIndex(4, most_beside=most_beside), {}
    for wait, changes in ((True, before), (False, after), (True, before)):
        for id, vector in changes:
            if vector is None:
                index.drop(id)
                held.pop(id, None)
            else:
                (held[id],) = pack([vector])
                index.put(id, held[id])
        assert not wait or index.wait(20)
        exact = DenseScan(4)
        exact.load(list(held.items()))
        (packed,) = pack([query])
        found, expected = index.search(packed, k, also="az"), exact.search(packed, k, also="az")
        assert len(index) == len(held)
        assert sorted(found.best.values()) == pytest.approx(sorted(expected.best.values()), abs=5e-3)
        assert set(found.best) <= set(held)
        assert found.of == pytest.approx(expected.of, abs=5e-3)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=5e-3)
    index.close()


def test_little_is_lost_and_little_is_compared():
    index, exact = AnnIndex(24, most_beside=100), DenseScan(24)
    rows = _named(_vectors(3000))
    index.load(rows)
    exact.load(rows)
    first = index.search(rows[7][1], 10)
    assert dict(first.best) == pytest.approx(dict(exact.search(rows[7][1], 10).best), abs=5e-3)  # while it is built
    assert index.wait(60)
    assert index.ready
    lost = 0
    for query in _vectors(40, seed=1):
        found, expected = index.search(query, 10), exact.search(query, 10)
        assert found.seen < 300
        assert -0.01 < found.low - expected.low < 0.2
        lost += len(expected.best.keys() - found.best.keys())
    assert lost <= 0.05 * 40 * 10
    assert index.nbytes > 3000 * 24 * 2


def test_a_new_load_in_the_middle_of_building_wins():
    index = AnnIndex(24, most_beside=10)
    index.load(_named(_vectors(2000)))
    other = [(f"other{i}", vector) for i, vector in enumerate(_vectors(300, seed=2))]
    index.load(other)
    assert index.wait(60)
    while not index.ready:
        index.wait(60)
    assert len(index) == 300
    assert set(index.search(other[0][1], 300).best) <= {id for id, _ in other}
    assert next(iter(index.search(other[5][1], 1).best)) == "other5"


def test_parts_bring_everything_back(tmp_path):
    index = AnnIndex(24, most_beside=50)
    rows = _named(_vectors(200))
    index.load(rows)
    assert index.wait(60)
    for id in ("3", "4"):
        index.drop(id)
    index.put("5", rows[9][1])
    index.put("new", rows[10][1])
    sidecar.write(tmp_path / "x", {"a": 1}, *index.parts())
    made_of, ids, blobs = sidecar.read(tmp_path / "x")  # type: ignore[misc]
    again = AnnIndex(24)
    assert (made_of, again.restore((ids, blobs)), len(again)) == ({"a": 1}, True, 199)
    for query in _vectors(20, seed=3):
        assert dict(again.search(query, 199).best) == pytest.approx(dict(index.search(query, 199).best), abs=1e-6)
    assert isinstance(again, KeptIndex)
    assert not isinstance(DenseScan(4), KeptIndex)


def test_parts_that_do_not_fit_change_nothing():
    index = AnnIndex(24, most_beside=10)
    index.load(_named(_vectors(30)))
    assert index.wait(60)
    (ids, beside), (blob, packed) = index.parts()
    other = AnnIndex(24)
    other.put("a", _vectors(1)[0])
    wrong = [
        ((ids, beside), (b"nonsense", packed)),
        ((ids[:-1], beside), (blob, packed)),
        ((ids, ["x"]), (blob, packed)),
        ((ids,), (blob, packed)),
        ((ids, beside), (AnnIndex(8).parts()[1][0], packed)),
    ]
    for parts in wrong:
        assert not other.restore(parts)
        assert (len(other), list(other.search(_vectors(1)[0], 3).best)) == (1, ["a"])


@pytest.mark.parametrize("where", [0, 10, 60, -40, -1])
def test_a_damaged_file_is_no_file(tmp_path, where):
    path = tmp_path / "x"
    sidecar.write(path, {"model": "m"}, [["a", "b"]], [b"12345678" * 10, b""])
    assert sidecar.read(path) == ({"model": "m"}, [["a", "b"]], [b"12345678" * 10, b""])
    assert path.stat().st_mode & 0o77 == 0
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    assert sidecar.read(path) is None
    path.write_bytes(data[:where])
    assert sidecar.read(path) is sidecar.read(tmp_path / "gone") is None


def test_a_vector_of_another_size_is_refused():
    index = AnnIndex(2)
    for act in (
        lambda: index.put("a", b"\0" * 4),
        lambda: index.search(b"\0" * 12, 1),
        lambda: index.load([("a", b"")]),
    ):
        with pytest.raises(ShapeError):
            act()
    assert len(index) == 0


def test_the_index_is_chosen_by_size_and_changed_only_well_beyond_the_limit(monkeypatch):
    many = choose.MANY
    assert [chosen("auto", count) for count in (0, many, many + 1)] == ["exact", "exact", "ann"]
    assert [chosen("auto", int(share * many), "exact") for share in (1.1, 1.3)] == ["exact", "ann"]
    assert [chosen("auto", int(share * many), "ann") for share in (0.9, 0.7)] == ["ann", "exact"]
    assert chosen("lsh", 10**9, "exact") == "lsh"
    monkeypatch.setattr(choose, "find_spec", lambda name: None)
    assert chosen("auto", 10**9) == "exact"


def test_names_are_checked():
    assert [check_index(name) for name in ("auto", "exact", "ann", "lsh")] == ["auto", "exact", "ann", "lsh"]
    assert make_index("lsh", 8).dim == 8
    with pytest.raises(ConfigError, match=r"unknown index 'exakt'.*did you mean 'exact'"):
        check_index("exakt")
