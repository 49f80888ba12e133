"""The lookup drafter in a real engine: drafts change no token and no distribution, whatever else the server does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv import get_policy
from remnant.kv.pace import paced
from remnant_vllm.drafter import LookupDrafter

pytestmark = pytest.mark.vllm

BLOCK, BUDGET, NEW = 32, 128, 40
LOOKUP = {"method": "custom_class", "model": "remnant_vllm.LookupDrafter", "num_speculative_tokens": 4}
SNAPKV = {"policy": "snapkv", "budget": BUDGET, "mode": "prompt", "window": 32}
Prompts = Callable[..., list[list[int]]]
Hf = Callable[..., list[int]]


@pytest.fixture(scope="session")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model, which copies what it has read before."""
    from remnant.testbed.model import export

    return export(tmp_path_factory.mktemp("testbed") / "model")


def repeating(prompts: Prompts, *lengths: int, period: int = 60, vocab: int = 512) -> list[list[int]]:
    """Texts that repeat themselves, each in a period of its own; the last part is new."""
    parts = prompts(*[period + 7 * i for i in range(len(lengths))], vocab=vocab)
    return [(part * (n // len(part) + 1))[:n] for part, n in zip(parts, lengths, strict=True)]


def drafter(running: Any) -> LookupDrafter:
    found = running.runner.drafter
    assert type(found) is LookupDrafter
    return found


def drafted(running: Any) -> dict[str, int]:
    """What vLLM counted of drafts so far."""
    names = {f"vllm:spec_decode_num_{what}": what for what in ("drafts", "draft_tokens", "accepted_tokens")}
    return {names[m.name]: int(m.value) for m in running.llm.get_metrics() if m.name in names}


def test_equal_to_plain_decoding(engine: Any, testbed: Path, prompts: Prompts, in_hf: Hf) -> None:
    """Repeating and plain texts, long and short ones in one batch: the tokens of the stock engine and of HF."""
    given = [*repeating(prompts, 300, 400, 220), *prompts(200, 40, 3, 1)]
    stock = engine(testbed, blocks=140)
    wanted = stock.run(given, NEW)
    assert wanted[:2] == [in_hf(testbed, prompt, NEW) for prompt in given[:2]]
    running = engine(testbed, blocks=140, speculative_config=LOOKUP)
    assert running.run(given, NEW) == wanted
    seen = drafted(running)
    assert seen["accepted_tokens"] > 40
    assert seen["accepted_tokens"] <= seen["draft_tokens"] <= 4 * seen["drafts"]
    assert running.steps < stock.steps
    assert drafter(running).histories.built == len(given), "every prompt was indexed once"


def test_with_eviction(engine: Any, testbed: Path, prompts: Prompts, in_hf: Hf) -> None:
    """Drafts stand behind the compressed prompt, which the drafter has whole; chunks and rows change nothing."""
    given = [*repeating(prompts, 420, 300), *prompts(333)]
    policy = paced(get_policy("snapkv", window=32), "prompt", BLOCK)
    wanted = [in_hf(testbed, prompt, NEW, policy, BUDGET) for prompt in given]
    for options in ({}, {"max_num_batched_tokens": 97, "max_num_seqs": 4}):
        running = engine(testbed, SNAPKV, blocks=140, speculative_config=LOOKUP, **options)
        assert running.run(given, NEW) == wanted
        assert drafted(running)["accepted_tokens"] > 20
        assert running.managers[0].evicted > 0


@pytest.mark.parametrize("remnant", [None, SNAPKV], ids=["plain", "snapkv"])
def test_preemption(remnant: Any, engine: Any, testbed: Path, prompts: Prompts) -> None:
    """Requests that lose their blocks and come back go on with the index that they had."""
    given, long = repeating(prompts, 200, 180, 220, 190), 120
    wanted = engine(testbed, remnant, blocks=140).run(given, long)
    running = engine(testbed, remnant, blocks=22, max_model_len=352, speculative_config=LOOKUP)
    assert running.run(given, long) == wanted
    assert sum(running.preemptions.values()) > 0
    assert running.free == running.pool.num_gpu_blocks - 1
    assert drafted(running)["accepted_tokens"] > 60
    assert drafter(running).histories.built == len(given), "no text was indexed a second time"


def test_prefix_cache_and_short_steps(engine: Any, testbed: Path, prompts: Prompts) -> None:
    """Prompts that share their beginning, in chunks, twice: hits skip their reading, not their indexing."""
    (first,), (tail,) = repeating(prompts, 300), prompts(80, seed=2)
    given = [first, first, first[:200] + tail, first + tail]
    wanted = engine(testbed, blocks=140).run(given, NEW)
    options = {"enable_prefix_caching": True, "max_num_batched_tokens": 64, "max_num_seqs": 4}
    running = engine(testbed, blocks=140, speculative_config=LOOKUP, **options)
    for _ in range(2):
        assert running.run(given, NEW) == wanted
    assert running.cached["0"] > 0


def test_aborted_requests_and_rows_that_move(engine: Any, testbed: Path, prompts: Prompts) -> None:
    """Rows close up behind requests that end early; sixty requests over eight rows, some of them aborted."""
    given = repeating(prompts, *[30 + 11 * i % 170 for i in range(60)])
    wanted = engine(testbed, blocks=140).run(given, 16)
    running = engine(testbed, blocks=140, max_num_seqs=8, speculative_config=LOOKUP)
    aborted: set[int] = set()

    def abort(e: Any) -> None:
        if e.steps % 15 == 7 and e.scheduler.running:
            name = e.scheduler.running[0].request_id
            aborted.add(int(name.split("-")[0]))
            e.llm.llm_engine.abort_request([name], internal=True)

    got = running.run(given, 16, watch=abort)
    assert aborted
    assert [got[i] for i in range(60) if i not in aborted] == [wanted[i] for i in range(60) if i not in aborted]
    histories = drafter(running).histories
    assert histories.built == len(given), "a row that moves takes its index along"
    assert len(histories) <= 16


def test_stop_tokens_and_full_length(engine: Any, testbed: Path, prompts: Prompts) -> None:
    """A stop inside a draft ends the text there, and a text ends at the model's length; nothing follows."""
    given = repeating(prompts, 300, 330)
    plain = engine(testbed, blocks=140, max_model_len=352).run(given, 60)
    assert [len(tokens) for tokens in plain] == [52, 22]
    stop = plain[0][20]
    options = {"ignore_eos": False, "stop_token_ids": [stop]}
    wanted = engine(testbed, blocks=140, max_model_len=352).run(given, 60, **options)
    running = engine(testbed, blocks=140, max_model_len=352, speculative_config=LOOKUP)
    assert running.run(given, 60) == plain
    assert running.run(given, 60, **options) == wanted
    assert wanted[0][-1] == stop


def test_penalties_and_minimum_length(engine: Any, testbed: Path, prompts: Prompts) -> None:
    """Processors that look at the text so far see drafted tokens as if they had been written one by one."""
    given = repeating(prompts, 200, 150)
    options = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "min_tokens": 20, "ignore_eos": False}
    wanted = engine(testbed, blocks=140).run(given, NEW, **options)
    running = engine(testbed, blocks=140, speculative_config=LOOKUP)
    assert running.run(given, NEW, **options) == wanted


def test_drafts_are_bounded(engine: Any, testbed: Path, prompts: Prompts) -> None:
    """Options reach the drafter: shorter drafts, and no index beyond the memory that was granted."""
    given = repeating(prompts, 600, 700, 650)
    wanted = engine(testbed, blocks=140).run(given, NEW)
    extra = {"additional_config": {"remnant": {"lookup": {"max_draft": 2, "max_tokens": 1500}}}}
    running = engine(testbed, blocks=140, speculative_config=LOOKUP, **extra)
    most: list[int] = []
    assert running.run(given, NEW, watch=lambda e: most.append(drafter(e).histories.tokens)) == wanted
    seen = drafted(running)
    assert 0 < seen["draft_tokens"] <= 2 * seen["drafts"]
    assert 1300 < max(most) <= 1500, "two of the three fit"


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        ({"additional_config": {"remnant": {"lookup": {"min_mach": 3}}}}, ConfigError, "did you mean 'min_match'"),
        ({"additional_config": {"remnant": {"lookup": {"max_draft": 9}}}}, ConfigError, "at most 4"),
        ({"additional_config": {"remnant": {"lookupp": {}}}}, ConfigError, "no 'policy'"),
        ({"additional_config": {"remnant": {"rapid": {"model": "m"}}}}, ConfigError, "does not choose"),
        (
            {"additional_config": {"remnant": {"lookup": {}}}, "speculative_config": None},
            ConfigError,
            "does not choose",
        ),
        ({"speculative_config": {**LOOKUP, "model": "remnant_vllm.LookupDraftr"}}, ConfigError, "did you mean"),
        ({"remnant": {**SNAPKV, "mode": "stream"}}, UnsupportedPolicy, "drafts that may be rejected"),
        ({"async_scheduling": True}, ValueError, "[Aa]sync scheduling"),
    ],
)
def test_refused_before_anything_is_loaded(
    flags: dict[str, Any], error: type[Exception], said: str, engine: Any, checkpoints: Any, monkeypatch: Any
) -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    monkeypatch.setattr(CPUModelRunner, "load_model", lambda *args, **kwargs: pytest.fail("weights were loaded"))
    with pytest.raises(Exception, match=said) as caught:
        engine(checkpoints("llama"), **{"speculative_config": LOOKUP, **flags})
    # What is a ValueError arrives as the error of vLLM's own validation, with our message in it.
    assert isinstance(caught.value, error) or type(caught.value).__name__ == "ValidationError"


@pytest.mark.parametrize("options", [{"min_p": 0.1, "temperature": 1.0}, {"logit_bias": {7: 2.0}}])
def test_what_vllm_would_ignore_is_refused(
    options: dict[str, Any], engine: Any, checkpoints: Any, prompts: Prompts
) -> None:
    """vLLM drops these where it drafts; whoever sends them hears it, and the engine goes on."""
    running = engine(checkpoints("llama"), speculative_config=LOOKUP)
    with pytest.raises(ConfigError, match=f"{next(iter(options))}=.* would ignore it"):
        running.run(prompts(40), 2, **options)
    assert len(running.run(prompts(40), 2)[0]) == 2
