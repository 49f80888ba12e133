"""Words, meaning and their mix, against answers computed by hand or by brute force."""

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ShapeError
from remnant.index import DenseScan, match_expression, mix, pack, rank, terms


def test_terms_drop_stop_words_unless_nothing_is_left():
    assert terms("What is the C++ of it?") == ["c"]
    assert terms("Who are you") == ["who", "are", "you"]
    assert terms("Tea tea TEA") == ["tea"]
    assert terms('"; DROP') == ["drop"]
    assert terms("") == terms("!?_") == []
    assert terms("日本 tea") == ["日", "本", "tea"]


def test_expression_quotes_every_term():
    assert match_expression(["tea", 'a"b']) == '"tea" OR "a""b"'


def test_bm25_by_hand():
    found = rank(["tea"], {"a": "tea tea milk", "b": "milk", "c": "tea"})
    idf, mean = max(1e-6, math.log(1.5 / 2.5)), 5 / 3
    expected = {
        "a": idf * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / mean)),
        "c": idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 / mean)),
    }
    assert dict(found) == pytest.approx(expected)
    assert rank(["tea"], {}) == rank([], {"a": "tea"}) == []


def test_mix_by_hand():
    (first, second, third) = mix({"a": 1.0, "b": 0.5}, {"b": 4.0, "c": 2.0}, 0.5, 0.0, 1.0)
    assert [(s.id, s.score) for s in (first, second, third)] == [("b", 0.75), ("a", 0.5), ("c", 0.25)]
    assert [s.id for s in mix({}, {"b": 1.0, "a": 1.0}, 0.0, 0.0, 0.0)] == ["a", "b"]
    assert mix({}, {}, 0.5, 0.0, 0.0) == []


VECTOR = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | VECTOR), max_size=30), VECTOR, st.integers(1, 8))
def test_scan_is_brute_force_after_any_changes(changes: list, query: list[float], k: int):
    scan, held = DenseScan(4), {}
    for id, vector in changes:
        if vector is None:
            scan.drop(id)
            held.pop(id, None)
        else:
            (held[id],) = pack([vector])
            scan.put(id, held[id])
    (packed,) = pack([query])
    found = scan.search(packed, k, also="az")
    again = DenseScan(4)
    again.load(list(held.items()))
    cosines = dict(again.search(packed, 99).best)
    assert len(scan) == len(held)
    assert sorted(found.best.values(), reverse=True) == pytest.approx(sorted(cosines.values(), reverse=True)[:k])
    assert found.of == pytest.approx({"a": cosines["a"]} if "a" in cosines else {})
    if cosines:
        assert (found.low, found.high) == pytest.approx((min(cosines.values()), max(cosines.values())))


@pytest.mark.parametrize("bad", [[[]], [[1.0, float("nan")]], [[1.0], [1.0, 2.0]], [[[1.0]]]])
def test_vectors_that_are_none(bad: list):
    with pytest.raises(ShapeError):
        pack(bad)


def test_a_vector_of_another_size_is_refused():
    scan = DenseScan(2)
    for act in (lambda: scan.put("a", b"\0" * 4), lambda: scan.search(b"\0" * 12, 1), lambda: scan.load([("a", b"")])):
        with pytest.raises(ShapeError):
            act()


def test_words_alone_load_no_numpy(tmp_path):
    code = """
import sys
from remnant.memory import Memory
with Memory.open(sys.argv[1], scope="a") as memory:
    memory.add("tea is green")
    assert memory.recall("green tea")
print(sorted({"numpy", "torch", "pydantic", "openai"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.db")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
