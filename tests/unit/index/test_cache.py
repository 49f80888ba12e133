"""The cache that is bounded by bytes, by hand."""

from dataclasses import dataclass

from remnant.index.cache import ByteCache


@dataclass
class Thing:
    nbytes: int


def test_what_was_used_longest_ago_goes_first():
    cache: ByteCache[str, Thing] = ByteCache(100)
    for name in "abc":
        cache.put(name, Thing(30))
    assert cache.get("a") is not None
    cache.put("d", Thing(30))
    assert [name for name, _ in cache] == ["c", "a", "d"]
    assert (cache.nbytes, len(cache), cache.get("b")) == (90, 3, None)


def test_a_thing_that_has_grown_is_counted_again_and_one_too_large_stays_alone():
    cache: ByteCache[str, Thing] = ByteCache(100)
    small, other = Thing(10), Thing(10)
    cache.put("a", small)
    cache.put("b", other)
    small.nbytes = 300
    cache.put("a", small)
    assert ([name for name, _ in cache], cache.nbytes) == (["a"], 300)
    cache.put("b", other)
    assert ([name for name, _ in cache], cache.nbytes) == (["b"], 10)
    cache.pop("b")
    cache.pop("b")
    assert (len(cache), cache.nbytes) == (0, 0)
    cache.put("a", small)
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)
