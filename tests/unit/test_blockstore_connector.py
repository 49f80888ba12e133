"""The halves of the KV connector without an engine: what is asked, promised, loaded and saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from remnant_vllm.blockstore import BlockStore, Leased, StoreOptions  # noqa: E402
from remnant_vllm.connector_scheduler import LocalDesk, Move, Question, RemoteDesk, SchedulerSide  # noqa: E402
from remnant_vllm.connector_worker import WorkerSide  # noqa: E402
from remnant_vllm.copier import BlockCopier, Placed  # noqa: E402
from remnant_vllm.settings import Settings  # noqa: E402

SIZE = 4


@dataclass
class Request:
    """What the scheduler's half reads of vLLM's request."""

    request_id: str
    prompt_token_ids: list[int]
    num_computed_tokens: int = 0
    out: list[int] = field(default_factory=list[int])
    extra_args: Any = None
    mm_features: list[Any] = field(default_factory=list[Any])
    lora_request: Any = None
    cache_salt: str | None = None
    prompt_embeds: Any = None
    resumable: bool = False
    skip_reading_prefix_cache: bool = False

    @property
    def all_token_ids(self) -> list[int]:
        return self.prompt_token_ids + self.out

    @property
    def num_tokens(self) -> int:
        return len(self.all_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(extra_args=self.extra_args)


class Desk:
    """Has the first so many blocks of everything."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.asked: list[Question] = []
        self.over: list[str] = []

    def ask(self, question: Question) -> Leased:
        self.asked.append(question)
        return Leased(max(0, min(self.blocks - question.first, len(question.keys))), 1)

    def end(self, request: str) -> None:
        self.over.append(request)


class Spec:
    """A group that evicts with a budget of its own."""

    def __init__(self, budget: int) -> None:
        self.remnant = Settings.parse({"policy": "snapkv", "budget": 100, "window": 1, "mode": "prompt"})
        self.budget = budget

    def settings(self, prompt_len: int, asked: Settings) -> Settings:
        from dataclasses import replace

        return asked if asked.budget is None else replace(asked, budget=self.budget)


def side(blocks: int = 0, specs: Any = (None,), loads: bool = True, saves: bool = True) -> tuple[SchedulerSide, Desk]:
    made = SchedulerSide(specs, SIZE, StoreOptions(), loads, saves)
    desk = Desk(blocks)
    made.desk = desk
    return made, desk


def tokens(n: int) -> list[int]:
    return list(range(100, 100 + n))


def ids(*groups: int) -> Any:
    """Blocks 10, 11, ... in the first group, 20, 21, ... in the second."""
    return lambda request: tuple(list(range(10 * (g + 1), 10 * (g + 1) + n)) for g, n in enumerate(groups))


def test_one_token_is_always_left_to_compute() -> None:
    for length, blocks in ((1, 0), (4, 0), (5, 1), (8, 1), (9, 2)):
        scheduler, _ = side(blocks=99)
        assert scheduler.matched(Request("r", tokens(length)), 0) == blocks * SIZE


def test_only_what_vllm_lacks_is_asked_for() -> None:
    scheduler, desk = side(blocks=3)
    request = Request("r", tokens(20))
    assert scheduler.matched(request, 8) == 4
    assert [(q.first, len(q.keys)) for q in desk.asked] == [(2, 2)]
    assert scheduler.matched(request, 16) == 0
    assert scheduler.matched(request, 7) == 0, "not a whole block"
    scheduler.allocated(request, ids(5)("r"), 4)
    (move,) = scheduler.take_loads()
    assert move == Move("r", desk.asked[0].keys[:1], [[12]])
    assert scheduler.take_loads() == []
    assert scheduler.from_disk(request, 4) == 4


@pytest.mark.parametrize(
    "change",
    [{"prompt_embeds": 1}, {"resumable": True}, {"skip_reading_prefix_cache": True}, {"prompt_token_ids": []}],
)
def test_some_requests_never_ask(change: dict[str, Any]) -> None:
    scheduler, desk = side(blocks=9)
    request = Request(**{"request_id": "r", "prompt_token_ids": tokens(20), **change})
    assert scheduler.matched(request, 0) == 0
    assert desk.asked == []
    scheduler.allocated(request, ids(5)("r"), 0)
    saves = scheduler.plan_saves({"r": 20}, ids(5))
    assert bool(saves) == ("skip_reading_prefix_cache" in change)


def test_roles() -> None:
    scheduler, _ = side(blocks=9, loads=False)
    request = Request("r", tokens(20))
    assert scheduler.matched(request, 0) == 0
    scheduler.allocated(request, ids(5)("r"), 0)
    assert len(scheduler.plan_saves({"r": 20}, ids(5))[0].keys) == 5
    scheduler, _ = side(blocks=9, saves=False)
    assert scheduler.matched(request, 0) == 16
    scheduler.allocated(request, ids(5)("r"), 16)
    assert scheduler.plan_saves({"r": 4}, ids(5)) == []


def test_every_block_is_saved_once_when_it_is_complete() -> None:
    """In chunks, then token by token; drafts beyond the known tokens do not count."""
    scheduler, _ = side()
    request = Request("r", tokens(10))
    scheduler.allocated(request, ids(3)("r"), 0)
    saved = []
    for computed, scheduled, out in ((0, 3, 0), (3, 4, 0), (7, 3, 0), (10, 1, 1), (11, 4, 2), (12, 4, 3), (13, 4, 7)):
        request.num_computed_tokens, request.out = computed, tokens(out)
        saved.append([move.ids[0] for move in scheduler.plan_saves({"r": scheduled}, ids(9))])
    assert saved == [[], [[10]], [[11]], [], [[12]], [], [[13]]]


def test_blocks_given_back_and_strangers_are_not_saved() -> None:
    scheduler, _ = side()
    request = Request("r", tokens(16))
    scheduler.allocated(request, ids(4)("r"), 0)
    assert scheduler.plan_saves({"r": 16, "stranger": 5}, lambda name: ([0, 11, 12], [20, 0, 22, 23]))[0].ids == [
        [12],
        [22],
    ]
    scheduler.finished("r")
    assert scheduler.plan_saves({"r": 16}, ids(4)) == []


def test_eviction_limits_both_ways_and_the_largest_budget_decides() -> None:
    request = Request("r", tokens(20))
    scheduler, _ = side(blocks=9, specs=[Spec(8), None, Spec(12)])
    assert scheduler.matched(request, 0) == 8
    scheduler.allocated(request, ids(5, 5)("r"), 8)
    (move,) = scheduler.plan_saves({"r": 20}, ids(5, 5))
    assert move.ids == [[10, 11], [20, 21]]
    off = Request("off", tokens(20), extra_args={"remnant": {"off": True}})
    assert scheduler.matched(off, 0) == 16
    short = Request("short", tokens(9))
    assert scheduler.matched(short, 0) == 8, "no layer evicts a whole block of it"


def test_keys_tell_adapters_salts_and_pictures_apart() -> None:
    scheduler, desk = side(blocks=0)
    picture = SimpleNamespace(identifier="cat", mm_position=SimpleNamespace(offset=6, length=3))
    lora = SimpleNamespace(lora_name="a", lora_path="nowhere", lora_int_id=1)
    requests = [
        Request("plain", tokens(20)),
        Request("same", tokens(20)),
        Request("salt", tokens(20), cache_salt="x"),
        Request("lora", tokens(20), lora_request=lora),
        Request("picture", tokens(20), mm_features=[picture]),
    ]
    for request in requests:
        scheduler.matched(request, 0)
    plain, same, salt, lora_keys, seen = [question.keys for question in desk.asked]
    assert plain == same
    assert not set(plain) & (set(salt) | set(lora_keys))
    assert [a == b for a, b in zip(plain, seen, strict=True)] == [True, False, False, False]
    scheduler.reset()
    scheduler.matched(requests[0], 0)
    assert not set(plain) & set(desk.asked[-1].keys)


def test_leases_end_with_the_request_or_when_nothing_is_loaded() -> None:
    scheduler, desk = side(blocks=9)
    request = Request("r", tokens(20))
    scheduler.matched(request, 0)
    scheduler.allocated(request, ids(5)("r"), 0)
    assert desk.over == ["r"]
    scheduler.finished("r")
    assert desk.over == ["r", "r"]


def test_a_remote_desk_waits_for_all_workers() -> None:
    desk = RemoteDesk(2)
    question = Question("r", 2, [b"a", b"b", b"c"])
    assert desk.ask(question) is None
    assert desk.ask(question) is None
    assert desk.take() == ([question], [])
    assert desk.take() == ([], [])
    desk.answer({"r": Leased(2, 1), "gone": Leased(9, 9)}, 2)
    assert desk.ask(question) == Leased(2, 1)
    assert desk.ask(Question("r", 3, [b"b", b"c"])) == Leased(1, 1), "vLLM has more by now"
    assert desk.ask(Question("r", 5, [b"x"])) == Leased(0, 0)
    assert desk.ask(Question("r", 1, [b"y", b"a"])) == Leased(0, 0), "and if it has less, nothing fits"
    desk.end("r")
    desk.end("r")
    assert desk.take() == ([], ["r"])
    assert desk.ask(question) is None
    desk.answer({"r": Leased(3, 0)}, 1)
    assert desk.ask(question) == Leased(0, 0), "one of two workers did not answer"
    desk.loaded("r")
    desk.end("r")
    assert desk.take() == ([question], []), "the workers end a lease themselves after the load"
    desk.ask(question)
    desk.end("r")
    assert desk.take() == ([], ["r"]), "asked and ended before it was sent"


# Worker


def cache_of(blocks: int, *shape: int, dtype: Any = torch.float32, seed: int = 0) -> Any:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(blocks, *shape, generator=source).to(dtype)


def test_blocks_are_copied_whole_whatever_they_look_like() -> None:
    """Two groups with tables of their own, three dtypes, kernel blocks of half the size, and a layout with gaps."""
    wide = cache_of(8, 2, SIZE, 6)
    layers = [
        Placed("c", 0, cache_of(8, 2, SIZE, 6, dtype=torch.bfloat16, seed=1)),
        Placed("a", 1, wide.transpose(1, 2)),
        Placed("b", 0, cache_of(16, 2, SIZE // 2, 3, dtype=torch.float16, seed=2)),
        Placed("d", 1, cache_of(8, 2, SIZE, 5, dtype=torch.float8_e4m3fn, seed=3)),
    ]
    copier = BlockCopier(layers, 8)
    assert copier.block_bytes == 48 * 2 + 48 * 4 + 24 * 2 + 40
    assert [name for name, *_ in copier.layout] == ["a", "b", "c", "d"]
    before = [layer.cache.view(torch.uint8).clone() for layer in layers]
    payloads = list(copier.read([[1, 5], [3, 2]]))
    assert [payload.nbytes for payload in payloads] == [copier.block_bytes] * 2
    copier.write([[6, 7], [0, 4]], payloads)
    for layer, old in zip(layers, before, strict=True):
        rows, now = (2 if layer.name == "b" else 1), layer.cache.view(torch.uint8)
        pairs = ((1, 6), (5, 7)) if layer.group == 0 else ((3, 0), (2, 4))
        for source, target in pairs:
            wanted = old[source * rows : (source + 1) * rows]
            assert torch.equal(now[target * rows : (target + 1) * rows], wanted)
        untouched = [i for i in range(8) if i not in [target for _, target in pairs]]
        for i in untouched:
            assert torch.equal(now[i * rows : (i + 1) * rows], old[i * rows : (i + 1) * rows])


def test_more_blocks_than_fit_into_one_copy() -> None:
    source = cache_of(200, 1, SIZE, 2)
    copier = BlockCopier([Placed("a", 0, source)], 200)
    before, order = source.clone(), torch.randperm(200).tolist()
    payloads = list(copier.read([order]))
    source.zero_()
    copier.write([order], payloads)
    assert torch.equal(source, before)
    assert list(copier.read([[]])) == []
    copier.write([[]], [])


@pytest.fixture
def worker() -> WorkerSide:
    copier = BlockCopier([Placed("a", 0, cache_of(32, 1, SIZE, 2))], 32)
    return WorkerSide(copier, BlockStore(StoreOptions(), bytes(32), copier.block_bytes), 1)


def keys(n: int) -> list[bytes]:
    return [bytes([i]) * 32 for i in range(n)]


def test_the_whole_way_through_one_process(worker: WorkerSide) -> None:
    cache, name = worker.copier._layers[0][0], keys(4)
    before = cache.clone()
    worker.save([Move("r", name, [[1, 2, 3, 4]]), Move("s", name[:2], [[1, 2]])])
    assert worker.store.counts.total["saved_blocks"] == 4
    assert LocalDesk(worker.store).ask(Question("t", 0, name)) == Leased(4, 0)
    worker.load([Move("t", name[1:3], [[11, 12]])])
    assert torch.equal(cache[11:13], before[2:4])
    assert worker.store.leased("t") == 0
    assert worker.take_failed() == set()
    news = worker.news()
    assert news is not None
    assert (news[0]["loaded_blocks"], news[0]["host_hits"]) == (2, 4)
    assert news[1]["host_bytes"] == 4 * worker.copier.block_bytes
    assert worker.news() is None


def test_questions_are_answered_once_and_leases_end_on_demand(worker: WorkerSide) -> None:
    worker.save([Move("r", keys(2), [[1, 2]])])
    worker.answer([Question("t", 0, keys(3))], [])
    assert worker.take_answers() == {"t": Leased(2, 0)}
    assert worker.take_answers() == {}
    assert worker.store.leased("t") == 2
    worker.answer([Question("t", 0, keys(1))], ["t", "nobody"])
    assert worker.store.leased("t") == 1
    worker.answer([], ["t"])
    assert worker.store.leased("t") == 0


def test_a_broken_promise_is_reported_and_what_came_before_it_loaded(worker: WorkerSide) -> None:
    worker.save([Move("r", keys(2), [[1, 2]])])
    cache = worker.copier._layers[0][0]
    before = cache.clone()
    worker.load([Move("t", keys(4), [[11, 12, 13, 14]])])
    assert worker.take_failed() == {13, 14}
    assert worker.take_failed() == set()
    assert torch.equal(cache[11:13], before[1:3])
    assert torch.equal(cache[13:], before[13:])
    worker.groups = 2
    with pytest.raises(RuntimeError, match="2 promised blocks of request t are gone"):
        worker.load([Move("t", keys(4), [[11, 12, 13, 14]])])
