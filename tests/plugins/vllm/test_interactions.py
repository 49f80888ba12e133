"""Eviction together with what else a server does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv import get_policy
from remnant.kv.pace import paced
from remnant_vllm import kept_tokens

pytestmark = pytest.mark.vllm

BLOCK, BUDGET, NEW = 32, 128, 24
SNAPKV = {"policy": "snapkv", "budget": BUDGET, "mode": "prompt", "window": 32}
Prompts = Callable[..., list[list[int]]]
Hf = Callable[..., list[int]]


@pytest.fixture
def wanted(checkpoints: Any, in_hf: Hf) -> Callable[[list[list[int]]], list[list[int]]]:
    policy = paced(get_policy("snapkv", window=32), "prompt", BLOCK)
    return lambda given: [in_hf(checkpoints("llama"), prompt, NEW, policy, BUDGET) for prompt in given]


def test_blocks_come_back(engine: Any, checkpoints: Any, prompts: Prompts, capsys: Any) -> None:
    """Printed and asserted: free blocks before, while the prompt is in, and from the step after it."""
    running = engine(checkpoints("llama"), SNAPKV)
    free: list[int] = [running.free]
    running.run(prompts(600), 8, watch=lambda e: free.append(e.free))
    with capsys.disabled():
        print(f"\nfree blocks of {running.pool.num_gpu_blocks - 1}, step by step: {free}")
    assert free[0] == 64
    assert free[1] == 64 - 19
    assert free[2] == 64 - 19 + (600 - BUDGET) // BLOCK
    assert free[-1] == 64
    assert running.managers[0].evicted == (600 - BUDGET) // BLOCK * BLOCK


def test_prefix_cache(engine: Any, checkpoints: Any, prompts: Prompts, wanted: Any) -> None:
    """The same prompt again, a sibling, a shorter and a longer one: hits never reach a block that is overwritten."""
    (first,), (tail,) = prompts(600), prompts(250, seed=2)
    given = [first, first, first[:400] + tail, first[:300], first + tail, first]
    running = engine(checkpoints("llama"), SNAPKV, enable_prefix_caching=True)
    hits = []
    for prompt, tokens in zip(given, wanted(given), strict=True):
        assert running.run([prompt], NEW) == [tokens]
        hits.append(running.cached["0"])
        limit = (len(prompt) - BUDGET) // BLOCK * BLOCK
        assert hits[-1] <= limit
    assert hits == [0, 448, 384, 160, 448, 448]


def test_prefix_cache_of_concurrent_requests(engine: Any, checkpoints: Any, prompts: Prompts, wanted: Any) -> None:
    (first,), (tail,) = prompts(600), prompts(250, seed=2)
    given = [first, first[:400] + tail, first[:333], first, tail + first]
    running = engine(checkpoints("llama"), SNAPKV, enable_prefix_caching=True, max_num_batched_tokens=200)
    assert running.run(given, NEW) == wanted(given)
    assert running.run(given, NEW) == wanted(given)


def test_prompts_that_compress_by_all_queries_share_nothing(
    engine: Any, checkpoints: Any, prompts: Prompts, in_hf: Hf
) -> None:
    """H2O sums the attention of all queries, so all have to be computed; a short prompt may still be shared."""
    running = engine(checkpoints("llama"), {"policy": "h2o", "budget": BUDGET}, enable_prefix_caching=True)
    (prompt,) = prompts(500)
    policy = paced(get_policy("h2o"), "prompt", BLOCK)
    tokens = in_hf(checkpoints("llama"), prompt, NEW, policy, BUDGET)
    for _ in range(2):
        assert running.run([prompt], NEW) == [tokens]
        assert running.cached["0"] == 0
    for hit in (0, 96):
        running.run([prompt[:120]], 4)
        assert running.cached["0"] in (hit, 96)


@pytest.mark.parametrize("chunk", [33, 97, 512])
def test_short_last_chunks(chunk: int, engine: Any, checkpoints: Any, prompts: Prompts, wanted: Any) -> None:
    """The window spans chunks: 599 = 6 * 97 + 17 leaves 17 queries for the last one."""
    given = prompts(599)
    running = engine(checkpoints("llama"), SNAPKV, max_num_batched_tokens=chunk, max_num_seqs=4)
    assert running.run(given, NEW) == wanted(given)


def test_preemption(engine: Any, checkpoints: Any, prompts: Prompts, in_hf: Hf) -> None:
    """Requests that lose their blocks and start again give the same tokens: they re-read over the survivors."""
    given, long = prompts(200, 180, 220, 190), 120
    policy = paced(get_policy("snapkv", window=32), "prompt", BLOCK)
    wanted = [in_hf(checkpoints("llama"), prompt, long, policy, BUDGET) for prompt in given]
    for options in ({}, {"max_num_batched_tokens": 64, "max_num_seqs": 4}, {"enable_prefix_caching": True}):
        running = engine(checkpoints("llama"), SNAPKV, blocks=22, max_model_len=352, **options)
        assert running.run(given, long) == wanted
        assert sum(running.preemptions.values()) > 0
        assert running.free == running.pool.num_gpu_blocks - 1


def test_preemption_in_stream_mode(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    """Requests that start again read their own tokens as prompts: bounded as before, complete, nothing left behind."""
    given, long = prompts(200, 180, 220, 190), 100
    running = engine(checkpoints("llama"), {"policy": "h2o", "budget": BUDGET, "mode": "stream"})

    def preempt(e: Any) -> None:
        if e.steps in (40, 70):
            assert e.llm.reset_prefix_cache(reset_running_requests=True)

    tokens = running.run(given, long, watch=preempt)
    assert [len(t) for t in tokens] == [long] * 4
    assert sum(running.preemptions.values()) > 0
    assert running.free == running.pool.num_gpu_blocks - 1
    running.run(given[:1], 2)
    for layer in running.runner.vllm_config.compilation_config.static_forward_context.values():
        assert len(layer.remnant_compactor.tracks) == 1, "what ended is forgotten with the next step"


def test_sliding_layers_with_a_prefix_cache(engine: Any, checkpoints: Any, prompts: Prompts, in_hf: Hf) -> None:
    """A hit that is cut short must still bring the window of the sliding layers in front of the cut."""
    (first,), (tail,) = prompts(600), prompts(250, seed=2)
    given = [first, first, first[:400] + tail, first[:300]]
    policy = paced(get_policy("snapkv", window=32), "prompt", BLOCK)
    wanted = [in_hf(checkpoints("gemma3"), prompt, NEW, policy, BUDGET) for prompt in given]
    running = engine(checkpoints("gemma3"), SNAPKV, blocks=120, enable_prefix_caching=True)
    hits = []
    for prompt, tokens in zip(given, wanted, strict=True):
        assert running.run([prompt], NEW) == [tokens]
        hits.append(running.cached["0"])
    assert hits[0] == 0
    assert hits[1] == (600 - BUDGET) // BLOCK * BLOCK


def test_requests_choose_for_themselves(engine: Any, checkpoints: Any, prompts: Prompts, in_hf: Hf) -> None:
    """Off, another budget, other options of the policy; beside each other in one batch."""
    model, given = checkpoints("llama"), prompts(400, 400, 410, 420)
    extra = [
        None,
        {"remnant": {"off": True}},
        {"remnant": '{"budget": 64}'},
        {"remnant": {"window": 8, "reduce": "max"}},
    ]
    wanted = [
        in_hf(model, given[0], NEW, "snapkv", kept_tokens(400, 128, BLOCK), window=32),
        in_hf(model, given[1], NEW),
        in_hf(model, given[2], NEW, "snapkv", kept_tokens(410, 64, BLOCK), window=32),
        in_hf(model, given[3], NEW, "snapkv", kept_tokens(420, 128, BLOCK), window=8, reduce="max"),
    ]
    for options in ({}, {"enable_prefix_caching": True, "max_num_batched_tokens": 150}):
        running = engine(model, SNAPKV, **options)
        assert running.run(given, NEW, extra=extra) == wanted
        assert running.run(given, NEW, extra=extra) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": 0}, "budget=0"),
        ({"budget": 16}, "at least 33"),
        ({"windoww": 3}, "did you mean 'window'"),
        ({"policy": "h2o"}, "belongs to the engine"),
        ({"mode": "stream"}, "belongs to the engine"),
        ({"off": "yes"}, "true, false"),
        (["off"], "a mapping"),
        ("{budget: 64}", "not JSON"),
        ('{"budget": 16}', "at least 33"),
    ],
)
def test_nonsense_in_a_request(given: Any, said: str, engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    """Refused where the sender hears it; the engine goes on."""
    running = shared_engine(engine, checkpoints)
    with pytest.raises(ConfigError, match=said):
        running.run(prompts(40), 2, extra=[{"remnant": given}])
    assert len(running.run(prompts(40), 2)[0]) == 2


def shared_engine(engine: Any, checkpoints: Any) -> Any:
    return engine(checkpoints("llama"), SNAPKV)


def test_options_for_an_engine_that_is_off(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    running = engine(checkpoints("llama"))
    with pytest.raises(ConfigError, match="off in this engine"):
        running.run(prompts(40), 2, extra=[{"remnant": {"budget": 64}}])


def test_no_leak(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    """Two hundred requests of all kinds, some aborted: the pool and every memory of a layer end empty."""
    running = engine(checkpoints("llama"), SNAPKV, blocks=49, max_model_len=640, enable_prefix_caching=True)
    lengths = [20 + 37 * i % 560 for i in range(200)]
    given = prompts(*lengths, seed=3)
    for i in range(0, 200, 3):
        given[i] = given[0][: len(given[i])] + given[i][len(given[0]) :]
    extra = [{"remnant": {"off": True}} if i % 5 == 4 else {"remnant": {"budget": 64}} if i % 5 == 3 else None
             for i in range(200)]  # fmt: skip
    aborted: list[str] = []

    def abort(e: Any) -> None:
        if e.steps % 20 == 10 and e.scheduler.running:
            aborted.append(e.scheduler.running[0].request_id)
            e.llm.llm_engine.abort_request(aborted[-1:], internal=True)

    running.run(given, 8, extra=extra, watch=abort)
    assert aborted
    assert running.free == running.pool.num_gpu_blocks - 1
    for manager in running.managers:
        assert not manager.asked
        assert not manager.req_to_blocks
    for layer in running.runner.vllm_config.compilation_config.static_forward_context.values():
        assert not layer.remnant_compactor.tracks


def test_budget_never_reached(engine: Any, checkpoints: Any, prompts: Prompts) -> None:
    """Bit for bit the stock engine."""
    given = prompts(300, 200, 100)
    stock = engine(checkpoints("llama")).run(given, NEW)
    assert engine(checkpoints("llama"), {**SNAPKV, "budget": 1000}).run(given, NEW) == stock
    assert engine(checkpoints("llama"), attention_backend="CUSTOM").run(given, NEW) == stock


def test_ngram_drafts(engine: Any, checkpoints: Any, prompts: Prompts, wanted: Any) -> None:
    """Drafts stand behind the compressed prompt; their verification reads over the survivors."""
    (part,) = prompts(60)
    given = [part * 8, part * 5 + part[:17]]
    spec = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    running = engine(checkpoints("llama"), SNAPKV, speculative_config=spec)
    assert running.run(given, NEW) == wanted(given)


@pytest.mark.parametrize(
    ("remnant", "flags", "error", "said"),
    [
        ({"budget": 128}, {}, ConfigError, "no 'policy'"),
        ({"policy": "snapkv"}, {}, ConfigError, "no 'budget'"),
        ({"policy": "snapkvv", "budget": 128}, {}, ConfigError, "did you mean 'snapkv'"),
        ({"policy": "snapkv", "budget": 12}, {}, ConfigError, "at least 33"),
        ({"policy": "snapkv", "budget": "many"}, {}, ConfigError, "an integer"),
        ({"policy": "snapkv", "budget": 128, "mode": "both"}, {}, ConfigError, "prompt, stream"),
        ({"policy": "adakv", "budget": 128}, {}, UnsupportedPolicy, "every head"),
        ({"policy": "think", "budget": 128}, {}, UnsupportedPolicy, "channels"),
        ({"policy": "tim", "budget": 128}, {}, UnsupportedPolicy, "events, tokens"),
        ({"policy": "d2o", "budget": 128}, {}, UnsupportedPolicy, "layers"),
        ({"policy": "full", "budget": 128}, {}, UnsupportedPolicy, "evicts nothing"),
        ({"policy": "expected", "budget": 128, "mode": "stream"}, {}, UnsupportedPolicy, "mode 'prompt'"),
        ({"policy": "lazyeviction", "budget": 128, "mode": "prompt"}, {}, UnsupportedPolicy, "mode 'stream'"),
        (SNAPKV, {"attention_backend": None}, ConfigError, "--attention-backend CUSTOM"),
        (SNAPKV, {"kv_cache_dtype": "fp8"}, UnsupportedPolicy, "fp8"),
        (
            {**SNAPKV, "mode": "stream"},
            {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}},
            UnsupportedPolicy,
            "drafts",
        ),
        (
            SNAPKV,
            {"kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}},
            UnsupportedPolicy,
            "RemnantConnector",
        ),
    ],
)
def test_refused_at_the_start(
    remnant: Any, flags: Any, error: type[Exception], said: str, engine: Any, checkpoints: Any
) -> None:
    """Both sides are named, and nothing has started."""
    with pytest.raises(Exception, match=said) as caught:
        engine(checkpoints("llama"), remnant, **flags)
    # What is a ValueError arrives as the error of vLLM's own validation, with our message in it.
    wrapped = error is ConfigError and type(caught.value).__name__ == "ValidationError"
    assert isinstance(caught.value, error) or wrapped
