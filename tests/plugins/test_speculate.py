"""Drafting in `generate`, one row: greedy output is that of the cache alone, whatever drafts and however it ends."""

import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

import remnant_hf
from remnant.testbed import load

EVICTING = ("streaming", "window", "h2o", "tova", "lazyeviction", "keydiff", "knorm", "trimkv", "random", "d2o")
"""Policies that act while decoding."""
AT_PROMPT = ("full", "snapkv", "pyramidkv", "adakv", "think", "expected")


@pytest.fixture(scope="module")
def bed() -> Any:
    model, tokenizer = load()
    text = "The committee met on Monday. The committee met on Tuesday. The committee met"
    return model.eval(), tokenizer, torch.tensor([tokenizer.encode(text)])


@pytest.fixture(scope="module")
def small(lab: Any) -> Any:
    """A drafter for the llama of the lab: its own first two layers."""
    model, target = lab.build(lab.config("llama", num_hidden_layers=2)), lab.model("llama")
    model.load_state_dict({k: v for k, v in target.state_dict().items() if "layers.2." not in k})
    return model


@pytest.mark.parametrize("num_draft", [1, 2, 3, 4, 5, 6])
def test_lookup_on_the_testbed(bed: Any, lab: Any, num_draft: int):
    model, _, ids = bed
    want = lab.go(model, ids, None, 30)
    drafts = remnant_hf.speculate("lookup", num_draft)
    assert torch.equal(lab.go(model, ids, None, 30, custom_generate=drafts), want)
    assert drafts.stats.accepted > 5
    assert drafts.stats.emitted == want.shape[1] - 1
    assert len(drafts.stats.by_position) <= num_draft


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "phi3", "gemma3", "gptoss", "dsv3"])
def test_architectures(lab: Any, replay: Any, name: str):
    model, ids = lab.model(name, lab.attns(name)[0]), lab.ids(8).repeat(1, 4)
    want = lab.go(model, ids, None, 25)
    for drafter in ("lookup", replay([torch.cat([ids, want], 1)[0]])):
        drafts = remnant_hf.speculate(drafter, 5)
        assert torch.equal(lab.go(model, ids, None, 25, custom_generate=drafts), want)
    assert drafts.stats.block_efficiency > 2


@pytest.mark.parametrize("num_draft", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("drafter", ["small", "itself"])
def test_a_model_drafts(lab: Any, small: Any, drafter: str, num_draft: int):
    model, ids = lab.model("llama"), lab.ids(30)
    drafts = remnant_hf.speculate(small if drafter == "small" else model, num_draft)
    got = lab.go(model, ids, None, 23, custom_generate=drafts)
    assert torch.equal(got, lab.go(model, ids, None, 23))
    assert drafts.stats.draft_bytes <= drafts.stats.target_bytes
    assert drafts.stats.acceptance == 1 or drafter == "small"


def test_a_drafter_with_a_sliding_window(lab: Any):
    """It takes back more than its window remembers."""
    model, ids = lab.model("gemma3"), lab.ids(40)
    drafts = remnant_hf.speculate(model, 4)
    assert torch.equal(lab.go(model, ids, None, 24, custom_generate=drafts), lab.go(model, ids, None, 24))
    assert drafts.stats.acceptance == 1


@pytest.mark.parametrize("policy", [*AT_PROMPT, *EVICTING])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
def test_over_a_compressed_cache(lab: Any, replay: Any, name: str, policy: str):
    """Equal to the cache's own greedy output, and the caches end alike."""
    model, ids = lab.model(name), lab.ids(70)
    plain, cache = lab.cache(model, policy, 40), lab.cache(model, policy, 40)
    want = lab.go(model, ids, plain, 30)
    drafts = remnant_hf.speculate(replay([torch.cat([ids, want], 1)[0]]), 4)
    assert torch.equal(lab.go(model, ids, cache, 30, custom_generate=drafts), want)
    assert cache.get_seq_length() == plain.get_seq_length()
    for layer in cache.governed:
        assert torch.equal(cache.kept_positions(layer.index), plain.kept_positions(layer.index))
        assert not layer.record_past
        assert not layer.stash
    if policy in AT_PROMPT:
        assert drafts.stats.block_efficiency > 2
    assert policy == "full" or cache.stats().evicted > 0


@pytest.mark.parametrize("policy", ["lazyeviction", "keydiff", "knorm", "trimkv", "snapkv"])
@pytest.mark.parametrize("num_draft", [1, 3, 6])
def test_drafts_end_before_an_eviction(lab: Any, replay: Any, policy: str, num_draft: int):
    model, ids = lab.model("llama"), lab.ids(40)
    options = {"snapkv": {"refresh": 8}, "keydiff": {"slack": 8}, "knorm": {"slack": 8}, "trimkv": {"buffer": 8}}.get(
        policy, {}
    )
    want = lab.go(model, ids, lab.cache(model, policy, **options), 40)
    drafts = remnant_hf.speculate(replay([torch.cat([ids, want], 1)[0]]), num_draft)
    got = lab.go(model, ids, lab.cache(model, policy, **options), 40, custom_generate=drafts)
    assert torch.equal(got, want)
    assert drafts.stats.accepted > 8


@pytest.mark.parametrize("policy", ["full", "snapkv", "h2o", "lazyeviction"])
def test_second_turn(lab: Any, replay: Any, policy: str):
    model, ids = lab.model("llama"), lab.ids(50)
    plain, cache = lab.cache(model, policy), lab.cache(model, policy)
    more, want, got = lab.ids(9, seed=8), ids, ids
    for turn in range(3):
        want = torch.cat([want, more], 1) if turn else want
        got = torch.cat([got, more], 1) if turn else got
        answer = lab.go(model, want, plain, 11)
        drafts = remnant_hf.speculate(replay([torch.cat([want, answer], 1)[0]]), 3)
        again = lab.go(model, got, cache, 11, custom_generate=drafts if turn != 1 else None)
        want, got = torch.cat([want, answer], 1), torch.cat([got, again], 1)
    assert torch.equal(want, got)
    assert cache.get_seq_length() == plain.get_seq_length()


def test_stock_cache_over_two_turns(lab: Any):
    model, first = lab.model("llama"), lab.ids(20)
    caches = [lab.full(model), lab.full(model)]
    outs = []
    for cache, drafts in zip(caches, (None, remnant_hf.speculate("lookup")), strict=True):
        ids = torch.cat([first, lab.go(model, first, cache, 10, custom_generate=drafts), lab.ids(7, seed=5)], 1)
        outs.append(lab.go(model, ids, cache, 10, custom_generate=drafts))
    assert torch.equal(*outs)
    assert caches[0].get_seq_length() == caches[1].get_seq_length()


@pytest.mark.parametrize("policy", ["snapkv", "h2o"])
def test_prompt_in_blocks(lab: Any, replay: Any, policy: str):
    model, ids = lab.model("llama"), lab.ids(60)
    want = lab.go(model, ids, lab.cache(model, policy, prefill_block=16), 20, prefill_chunk_size=16)
    drafts = remnant_hf.speculate(replay([torch.cat([ids, want], 1)[0]]))
    cache = lab.cache(model, policy, prefill_block=16)
    assert torch.equal(lab.go(model, ids, cache, 20, prefill_chunk_size=16, custom_generate=drafts), want)


@pytest.mark.parametrize("at", range(1, 9))
def test_an_end_token_anywhere(lab: Any, replay: Any, at: int):
    model, ids = lab.model("qwen3"), lab.ids(30)
    free = lab.go(model, ids, None, 12)
    end = int(free[0, at])
    want = lab.go(model, ids, None, 12, eos_token_id=end)
    for drafter in (replay([torch.cat([ids, free], 1)[0]]), "lookup"):
        drafts = remnant_hf.speculate(drafter, 5)
        assert torch.equal(lab.go(model, ids, None, 12, custom_generate=drafts, eos_token_id=end), want)


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6, 7])
def test_any_length(lab: Any, replay: Any, new: int):
    model, ids = lab.model("llama"), lab.ids(20)
    want = lab.go(model, ids, None, new)
    cache = lab.full(model)
    drafts = remnant_hf.speculate(replay([torch.cat([ids, lab.go(model, ids, None, 12)], 1)[0]]), 4)
    assert torch.equal(lab.go(model, ids, cache, new, custom_generate=drafts), want)
    assert cache.get_seq_length() == 20 + new - 1


class _After(StoppingCriteria):
    """Stops after a number of tokens that are even."""

    def __init__(self, count: int, start: int) -> None:
        self.count, self.start = count, start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return (input_ids[:, self.start :] % 2 == 0).sum(1) >= self.count


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_own_criteria_stop_inside_a_block(lab: Any, replay: Any, count: int):
    model, ids = lab.model("llama"), lab.ids(20)
    full = torch.cat([ids, lab.go(model, ids, None, 20)], 1)[0]
    stop: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([_After(count, 20)])}
    want = lab.go(model, ids, None, 20, **stop)
    drafts = remnant_hf.speculate(replay([full]), 6)
    cache = lab.full(model)
    assert torch.equal(lab.go(model, ids, cache, 20, custom_generate=drafts, **stop), want)
    assert cache.get_seq_length() == 20 + want.shape[1] - 1


def test_stop_strings(bed: Any, lab: Any):
    model, tokenizer, ids = bed
    free = lab.go(model, ids, None, 24)
    word = tokenizer.decode(free[0, 6:8])
    want = lab.go(model, ids, None, 24, stop_strings=[word], tokenizer=tokenizer)
    assert want.shape[1] < 24
    drafts = remnant_hf.speculate("lookup", 5, tokenizer=tokenizer)
    assert torch.equal(lab.go(model, ids, None, 24, stop_strings=[word], custom_generate=drafts), want)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 9}])
def test_processors_that_read_the_history(lab: Any, replay: Any, options: dict[str, Any]):
    model, ids = lab.model("llama"), lab.ids(20)
    end = int(lab.go(model, ids, None, 12)[0, 3])
    want = lab.go(model, ids, None, 18, eos_token_id=end, **options)
    for drafter in (replay([torch.cat([ids, want], 1)[0]]), model):
        drafts = remnant_hf.speculate(drafter, 4)
        assert torch.equal(lab.go(model, ids, None, 18, custom_generate=drafts, eos_token_id=end, **options), want)


def test_left_padding_of_one_row(lab: Any, replay: Any):
    model, ids = lab.model("llama"), lab.ids(30)
    padded, mask = torch.nn.functional.pad(ids, (5, 0)), torch.nn.functional.pad(torch.ones_like(ids), (5, 0))
    want = lab.go(model, padded, None, 15, attention_mask=mask)
    drafter = replay([torch.cat([ids, want], 1)[0]])
    drafts = remnant_hf.speculate(drafter, 4)
    assert torch.equal(lab.go(model, padded, None, 15, attention_mask=mask, custom_generate=drafts), want)
    assert len(drafter.texts[0]) == 30 + 15


class _Stream:
    def __init__(self) -> None:
        self.parts: list[Any] = []
        self.ended = False

    def put(self, value: Any) -> None:
        self.parts.append(value.flatten())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("rows", ["stock", "engine"])
def test_streamer(lab: Any, rows: str):
    model, ids, stream = lab.model("llama"), lab.ids(8).repeat(1, 3), _Stream()
    generator = torch.Generator().manual_seed(0) if rows == "engine" else None
    drafts = remnant_hf.speculate("lookup", generator=generator)
    got = lab.go(model, ids, None, 15, custom_generate=drafts, stream_to=stream)
    assert torch.equal(torch.cat(stream.parts)[None], torch.cat([ids, got], 1))
    assert stream.ended


def test_outputs_as_a_dictionary(lab: Any):
    model, ids = lab.model("llama"), lab.ids(8).repeat(1, 3)
    more = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    mask = torch.ones_like(ids)
    want = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **more)
    got = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        custom_generate=remnant_hf.speculate("lookup"),
        **more,
    )
    assert torch.equal(got.sequences, want.sequences)
    assert len(got.scores) == len(got.logits) == 12
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got.scores, want.scores, strict=True))
    assert isinstance(got.past_key_values, DynamicCache)


def test_the_model_is_not_touched_and_threads_do_not_meet(lab: Any, small: Any):
    model = lab.model("llama")
    before = dict(vars(model))
    prompts = [lab.ids(20 + i, seed=i) for i in range(4)]
    want = [lab.go(model, ids, lab.cache(model, "snapkv"), 20) for ids in prompts]
    drafts = remnant_hf.speculate(small, 3)
    got: list[Any] = [None] * 4

    def work(i: int) -> None:
        got[i] = lab.go(model, prompts[i], lab.cache(model, "snapkv"), 20, custom_generate=drafts)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert vars(model) == before
