"""The KV connector: a fresh engine goes on where another one stopped, and says the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.vllm

BLOCK, NEW = 32, 16
BLOCK_BYTES = 2 * 2 * BLOCK * 2 * 32 * 4  # layers, heads, tokens, keys and values, dimensions, float32


def store_flag(path: Path | None, role: str = "kv_both", **options: Any) -> Any:
    """What --kv-transfer-config gives."""
    from vllm.config import KVTransferConfig

    extra = {"path": str(path), "disk_bytes": 1 << 30} if path is not None else {}
    return KVTransferConfig(
        kv_connector="RemnantConnector",
        kv_connector_module_path="remnant_vllm.connector",
        kv_role=role,  # type: ignore[arg-type]
        kv_connector_extra_config={"host_bytes": 1 << 28, **extra, **options},
    )


def store_of(engine: Any) -> Any:
    """The store of a running engine."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    engine.scheduler  # noqa: B018  it must be running
    return get_kv_transfer_group().store  # type: ignore[attr-defined]


def cached(engine: Any, count: int) -> list[int]:
    return [engine.cached[str(i)] for i in range(count)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


@pytest.fixture
def case(engine: Any, checkpoints: Any, prompts: Any) -> Case:
    return Case(engine, checkpoints("llama"), prompts)


class Case:
    """Two prompts, a sibling of the first, and what an engine without a store says."""

    answers: list[list[int]] | None = None

    def __init__(self, engine: Callable[..., Any], model: Path, prompts: Any) -> None:
        self.engine, self.model = engine, model
        first, second = prompts(300, 200)
        (rest,) = prompts(40, seed=2)
        self.given = [first, second, first[:260] + rest]

    def expected(self) -> list[list[int]]:
        answers = Case.answers or self.engine(self.model).run(self.given, NEW)
        Case.answers = answers
        return answers

    def start(self, flag: Any, remnant: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return self.engine(self.model, remnant, kv_transfer_config=flag, **kwargs)


def test_a_fresh_engine_loads_what_an_earlier_one_stored(case: Case, tmp_path: Path) -> None:
    expected = case.expected()
    first = case.start(store_flag(tmp_path))
    assert first.run(case.given[:2], NEW) == expected[:2]
    assert cached(first, 2) == [0, 0]
    saved = (300 + NEW - 1) // BLOCK + (200 + NEW - 1) // BLOCK
    assert store_of(first).counts.total["saved_blocks"] == saved
    second = case.start(store_flag(tmp_path))
    assert len(files(tmp_path)) == saved, "shutdown wrote what waited"
    assert second.run(case.given, NEW) == expected
    assert cached(second, 3) == [288, 192, 256]
    total = store_of(second).counts.total
    assert total["loaded_blocks"] == (288 + 192 + 256) // BLOCK
    assert (total["disk_hits"], total["host_hits"]) == (9 + 6, 8)
    assert store_of(second).gauges()["host_bytes"] == (15 + 1) * BLOCK_BYTES, "loaded ones, and the sibling's own"
    assert second.run(case.given, NEW) == expected
    assert store_of(second).counts.total["saved_blocks"] == 1, "the sibling's own block; nothing is stored twice"


def test_a_conversation_goes_on(case: Case, tmp_path: Path) -> None:
    """Generated blocks are stored too: the next turn starts with them."""
    (answer,) = case.start(store_flag(tmp_path)).run(case.given[:1], 100)
    longer = case.given[0] + answer + case.given[1][:20]
    second = case.start(store_flag(tmp_path))
    got = second.run([longer], NEW)
    assert cached(second, 1) == [(300 + 99) // BLOCK * BLOCK]
    assert got == case.engine(case.model).run([longer], NEW)


def test_rejected_drafts_are_never_stored(case: Case, tmp_path: Path) -> None:
    given = [case.given[0][:40] * 6]
    (wanted,) = case.engine(case.model).run(given, 100)
    drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    first = case.start(store_flag(tmp_path), speculative_config=drafts)
    assert first.run(given, 100) == [wanted]
    counts = {metric.name: getattr(metric, "value", 0) for metric in first.llm.get_metrics()}
    tried, taken = (counts[f"vllm:spec_decode_num_{what}_tokens"] for what in ("draft", "accepted"))
    assert 0 < taken < tried
    longer = [given[0] + wanted + given[0][:20]]
    expected = case.engine(case.model).run(longer, NEW)
    second = case.start(store_flag(tmp_path))
    assert second.run(longer, NEW) == expected
    assert cached(second, 1) == [(240 + 99) // BLOCK * BLOCK]


def test_in_chunks_in_a_small_pool_and_with_a_prefix_cache(case: Case, tmp_path: Path, prompts: Any) -> None:
    given = prompts(300, 290, 280, 270, seed=5)
    wanted = case.engine(case.model).run(given, 150)
    tight = {"blocks": 34, "max_num_batched_tokens": 100, "max_num_seqs": 4, "enable_prefix_caching": True}
    first = case.start(store_flag(tmp_path), **tight)
    assert first.run(given, 150) == wanted
    assert max(first.preemptions.values()) > 0
    assert store_of(first).counts.total["loaded_blocks"] > 0, "a preempted request has its blocks back from the store"
    second = case.start(store_flag(tmp_path), **tight)
    assert second.run(given, 150) == wanted
    assert second.run(given, 150) == wanted
    assert store_of(second).counts.total["corrupt_files"] == 0
    assert second.free == second.pool.num_gpu_blocks - 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_a_bad_file_is_dropped_counted_and_never_used(damage: str, case: Case, tmp_path: Path) -> None:
    expected = case.expected()
    first = case.start(store_flag(tmp_path))
    first.run(case.given[:1], NEW)
    keys = _keys(first, case.given[0])
    first = case.start(store_flag(tmp_path))
    path = {bytes.fromhex(path.stem): path for path in files(tmp_path)}
    victim, raw = path[keys[4]], path[keys[4]].read_bytes()
    bad = {"flip": raw[:5000] + bytes([raw[5000] ^ 4]) + raw[5001:], "cut": raw[:-7], "empty": b""}
    victim.write_bytes(bad[damage] if damage in bad else path[keys[5]].read_bytes())
    assert first.run(case.given[:1], NEW) == expected[:1]
    assert cached(first, 1) == [4 * BLOCK]
    total = store_of(first).counts.total
    assert (total["corrupt_files"], total["foreign_files"]) == ((0, 1) if damage == "swap" else (1, 0))
    third = case.start(store_flag(tmp_path))
    assert victim.read_bytes() == raw, "computed again and stored again, the same"
    assert third.run(case.given[:1], NEW) == expected[:1]
    assert cached(third, 1) == [288]


def _keys(engine: Any, prompt: list[int]) -> list[bytes]:
    from remnant_vllm.blockstore import Chain

    assert engine.scheduler.connector._scheduler.block_size == BLOCK
    return Chain("prefix/", BLOCK).grow(prompt, len(prompt) // BLOCK)


def test_two_engines_share_a_folder_at_once(
    case: Case, tmp_path: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both alive in one process; vLLM has one worker connector per process, so it is handed over by hand."""
    from vllm.distributed.kv_transfer import kv_transfer_state as state

    expected = case.expected()
    one = case.start(store_flag(tmp_path))
    connector = state._KV_CONNECTOR_AGENT
    monkeypatch.setattr(state, "_KV_CONNECTOR_AGENT", None)
    other = _beside(case.model, store_flag(tmp_path))
    theirs = state._KV_CONNECTOR_AGENT
    try:
        assert theirs is not connector
        state._KV_CONNECTOR_AGENT = connector
        assert one.run(case.given[:1], NEW) == expected[:1]
        assert store_of(one).flush(10)
        state._KV_CONNECTOR_AGENT = theirs
        assert _generate(other, case.given) == (expected, [288, 0, 256])
        assert store_of(one).flush(10)
        state._KV_CONNECTOR_AGENT = connector
        assert one.run(case.given, NEW) == expected
        assert cached(one, 3) == [288, 192, 288]
    finally:
        state._KV_CONNECTOR_AGENT = theirs
        other.llm_engine.engine_core.shutdown()
        state._KV_CONNECTOR_AGENT = connector


def _beside(model: Path, flag: Any, **kwargs: Any) -> Any:
    """An engine that no fixture looks after."""
    from vllm import LLM

    options = {"skip_tokenizer_init": True, "enforce_eager": True, "dtype": "float32", "block_size": BLOCK}
    options |= {"max_model_len": 1024, "enable_prefix_caching": False, "kv_cache_memory_bytes": 65 * BLOCK_BYTES}
    return LLM(str(model), kv_transfer_config=flag, **{**options, **kwargs})


def _generate(llm: Any, given: list[list[int]], salt: str | None = None, **sampling: Any) -> Any:
    """(tokens, how many prompt tokens were not computed) per prompt."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True, detokenize=False, **sampling)
    salted = {"cache_salt": salt} if salt else {}
    out = llm.generate([TokensPrompt(prompt_token_ids=p, **salted) for p in given], params, use_tqdm=False)
    return [list(x.outputs[0].token_ids) for x in out], [x.num_cached_tokens for x in out]


def test_memory_alone_serves_one_engine_within_its_limit(case: Case) -> None:
    expected = case.expected()
    engine = case.start(store_flag(None, host_bytes=10 * BLOCK_BYTES))
    assert engine.run(case.given[:1], NEW) == expected[:1]
    assert engine.run(case.given[:1], NEW) == expected[:1]
    assert cached(engine, 1) == [288]
    assert engine.run(case.given[1:2], NEW) == expected[1:2]
    store = store_of(engine)
    assert store.gauges() == {"host_bytes": 10 * BLOCK_BYTES, "disk_bytes": 0, "pending_bytes": 0}
    assert store.counts.total["host_evicted"] > 0
    assert engine.run(case.given, NEW) == expected


def test_a_disk_limit_holds(case: Case, tmp_path: Path) -> None:
    limit = 5 * (BLOCK_BYTES + 112)
    case.start(store_flag(tmp_path, disk_bytes=limit)).run(case.given, NEW)
    later = case.start(store_flag(tmp_path, disk_bytes=limit))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == limit
    assert later.run(case.given, NEW) == case.expected()


def test_salted_prompts_and_prompt_logprobs_stand_alone(case: Case, tmp_path: Path) -> None:
    llm = case.start(store_flag(tmp_path)).llm
    one = case.given[:1]
    wanted, _ = _generate(llm, one)
    assert _generate(llm, one, salt="a") == (wanted, [0])
    assert _generate(llm, one, salt="b") == (wanted, [0])
    assert _generate(llm, one, salt="a") == (wanted, [288])
    assert _generate(llm, one, prompt_logprobs=1) == (wanted, [0])


def test_after_a_reset_nothing_old_is_used_and_nothing_new_is_shared(case: Case, tmp_path: Path) -> None:
    engine = case.start(store_flag(tmp_path), enable_prefix_caching=True)
    one = case.given[:1]
    wanted, _ = _generate(engine.llm, one)
    assert store_of(engine).flush(10)
    count = len(files(tmp_path))
    assert engine.scheduler.reset_prefix_cache(reset_connector=True)
    assert _generate(engine.llm, one) == (wanted, [0])
    assert store_of(engine).flush(10)
    assert len(files(tmp_path)) == 2 * count
    engine.scheduler.reset_prefix_cache()
    assert _generate(engine.llm, one) == (wanted, [288]), "its own blocks from after the reset"


def test_roles(case: Case, tmp_path: Path) -> None:
    reader = case.start(store_flag(tmp_path, "kv_consumer"))
    reader.run(case.given[:1], NEW)
    assert store_of(reader).counts.total["saved_blocks"] == 0
    writer = case.start(store_flag(tmp_path, "kv_producer"))
    for _ in range(2):
        writer.run(case.given[:1], NEW)
        assert cached(writer, 1) == [0]
    reader = case.start(store_flag(tmp_path, "kv_consumer"))
    reader.run(case.given[:1], NEW)
    assert cached(reader, 1) == [288]


def test_an_aborted_request_lets_go(case: Case, tmp_path: Path) -> None:
    """Asked for but never started: the pool has no room for it."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    case.start(store_flag(tmp_path)).run(case.given[:1], NEW)
    engine = case.start(store_flag(tmp_path), blocks=33)
    core, params = (
        engine.llm.llm_engine,
        SamplingParams(max_tokens=300, temperature=0, ignore_eos=True, detokenize=False),
    )
    (filler,) = [list(range(1, 500)) + list(range(1, 300))]
    core.add_request("big", TokensPrompt(prompt_token_ids=filler), params)
    core.step()
    core.add_request("late", TokensPrompt(prompt_token_ids=case.given[0]), params)
    core.step()
    late = next(name for name in engine.scheduler.requests if name.startswith("late"))
    store = store_of(engine)
    assert store.leased(late) == 9
    core.abort_request(["late"])
    core.step()
    assert store.leased(late) == 0
    assert store._host.pinned == 0


def test_workers_elsewhere_are_asked_by_message(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with several ranks: the request waits for a step, and everything else is the same."""
    from remnant_vllm.connector import RemnantConnector
    from remnant_vllm.connector_scheduler import RemoteDesk

    monkeypatch.setattr(RemnantConnector, "_open_desk", lambda self: RemoteDesk(1))
    expected = case.expected()
    first = case.start(store_flag(tmp_path))
    assert first.run(case.given[:2], NEW) == expected[:2]
    second = case.start(store_flag(tmp_path))
    assert second.run(case.given, NEW) == expected
    assert cached(second, 3) == [288, 192, 256]
    store = store_of(second)
    assert store._host.pinned == 0
    assert store._leases == {}
    host_only = case.start(store_flag(None))
    assert host_only.run(case.given, NEW) == expected
    assert host_only.run(case.given, NEW) == expected
    assert cached(host_only, 3) == [288, 192, 288]


def test_if_a_promise_were_broken_vllm_would_compute(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases make this impossible; `kv_load_failure_policy` says what happens all the same."""
    expected = case.expected()
    case.start(store_flag(tmp_path)).run(case.given[:1], NEW)
    flag = store_flag(tmp_path)
    flag.kv_load_failure_policy = "recompute"
    engine = case.start(flag)
    store, lost = store_of(engine), _keys(engine, case.given[0])[3]
    get = store.get
    monkeypatch.setattr(store, "get", lambda key: None if key == lost else get(key))
    assert engine.run(case.given[:1], NEW) == expected[:1]
    assert store.counts.total["loaded_blocks"] >= 3
    assert store._host.pinned == 0


def test_stats_reach_the_log_and_prometheus(case: Case, tmp_path: Path) -> None:
    case.start(store_flag(tmp_path)).run(case.given, NEW)
    engine = case.start(store_flag(tmp_path))
    engine.run(case.given, NEW)
    metrics = {metric.name: metric.value for metric in engine.llm.get_metrics() if "remnant_store" in metric.name}
    assert metrics["vllm:remnant_store_loaded_blocks"] == 9 + 6 + 9
    assert metrics["vllm:remnant_store_loaded_bytes"] == (9 + 6 + 9) * BLOCK_BYTES
    assert metrics["vllm:remnant_store_disk_hits"] == 9 + 6 + 1
    assert metrics["vllm:remnant_store_host_bytes"] > 0
    assert metrics["vllm:remnant_store_disk_bytes"] > 0
    assert metrics["vllm:remnant_store_corrupt_files"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hots_bytes": 5}, "unknown key in kv_connector_extra_config: 'hots_bytes'"), ({"host_bytes": 99}, "one block")],
)
def test_bad_options_stop_the_engine(options: dict[str, Any], message: str, case: Case) -> None:
    from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown

    try:
        with pytest.raises(ValueError, match=message):
            case.start(store_flag(None, **options))
    finally:
        ensure_kv_transfer_shutdown()


def test_other_weights_find_nothing(case: Case, tmp_path: Path, checkpoints: Any) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(case.model, copy)
    wanted = case.engine(copy, kv_transfer_config=store_flag(tmp_path)).run(case.given[:1], NEW)
    again = case.engine(copy, kv_transfer_config=store_flag(tmp_path))
    assert again.run(case.given[:1], NEW) == wanted
    assert cached(again, 1) == [288]
    (copy / "model.safetensors").touch()
    changed = case.engine(copy, kv_transfer_config=store_flag(tmp_path))
    assert changed.run(case.given[:1], NEW) == wanted
    assert cached(changed, 1) == [0]


def test_sliding_windows_are_left_alone_unless_blocks_are_full(
    case: Case, tmp_path: Path, checkpoints: Any, prompts: Any
) -> None:
    model, given = checkpoints("gemma3"), prompts(300, 200)
    wanted = case.engine(model).run(given, NEW)
    for _ in range(2):
        engine = case.engine(model, kv_transfer_config=store_flag(tmp_path))
        assert engine.run(given, NEW) == wanted
        assert cached(engine, 2) == [0, 0]
        assert store_of(engine) is None
    assert files(tmp_path) == []
    for hits in ([0, 0], [288, 192]):
        engine = case.engine(model, kv_transfer_config=store_flag(tmp_path), disable_hybrid_kv_cache_manager=True)
        assert engine.run(given, NEW) == wanted
        assert cached(engine, 2) == hits
