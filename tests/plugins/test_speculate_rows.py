"""Drafting with batches, trees, tilts and plans, by our own engine: rows accept different lengths and stay exact."""

from typing import Any

import pytest
import torch

import remnant_hf
from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.speculative import MemoryModel, Plan, generate, plan
from remnant.speculative.rapid import Tilt
from remnant.testbed import load
from remnant_hf._target import ModelTarget

LENGTHS = (40, 17, 29)


def _texts(rows: list[Any], answers: Any) -> list[Any]:
    return [torch.cat([row[0], answer]) for row, answer in zip(rows, answers, strict=True)]


@pytest.mark.parametrize("num_draft", [1, 2, 3, 4, 5, 6])
def test_a_padded_batch(lab: Any, replay: Any, num_draft: int):
    model = lab.model("llama")
    rows, ids, mask = lab.padded(LENGTHS)
    want = lab.go(model, ids, None, 23, attention_mask=mask)
    for drafter in (replay(_texts(rows, want)), "lookup", model):
        drafts = remnant_hf.speculate(drafter, num_draft)
        assert torch.equal(lab.go(model, ids, None, 23, attention_mask=mask, custom_generate=drafts), want)
    assert drafts.stats.acceptance == 1


@pytest.mark.parametrize("name", ["qwen3", "phi3", "gemma3", "gptoss"])
def test_architectures(lab: Any, replay: Any, name: str):
    """Sliding windows, attention sinks, one more query per key: masks are made per row."""
    for attn in lab.attns(name):
        model = lab.model(name, attn)
        rows, ids, mask = lab.padded(LENGTHS)
        want = lab.go(model, ids, None, 20, attention_mask=mask)
        drafts = remnant_hf.speculate(replay(_texts(rows, want)), 4)
        assert torch.equal(lab.go(model, ids, None, 20, attention_mask=mask, custom_generate=drafts), want)
        drafts = remnant_hf.speculate(replay(_texts(rows, want), branches=True), 6, tree=True)
        assert torch.equal(lab.go(model, ids, None, 20, attention_mask=mask, custom_generate=drafts), want)
        assert drafts.stats.block_efficiency > 2


@pytest.mark.parametrize(
    "policy",
    ["full", "snapkv", "adakv", "think", "h2o", "streaming", "tova", "lazyeviction", "keydiff", "trimkv", "d2o"],
)
def test_rows_over_compressed_caches_equal_rows_alone(lab: Any, replay: Any, policy: str):
    model = lab.model("llama")
    rows, ids, mask = lab.padded((60, 37, 50))
    want = torch.cat([lab.go(model, row, lab.cache(model, policy, 32), 24) for row in rows])
    drafts = remnant_hf.speculate(replay(_texts(rows, want)), 4)
    cache = lab.cache(model, policy, 32)
    assert torch.equal(lab.go(model, ids, cache, 24, attention_mask=mask, custom_generate=drafts), want)
    assert cache.get_seq_length() == 0


def test_rows_end_at_different_places(lab: Any, replay: Any):
    model = lab.model("llama")
    rows, ids, mask = lab.padded(LENGTHS)
    free = lab.go(model, ids, None, 16, attention_mask=mask)
    ends = [int(free[0, 2]), int(free[1, 9])]
    want = lab.go(model, ids, None, 16, attention_mask=mask, eos_token_id=ends)
    drafts = remnant_hf.speculate(replay(_texts(rows, free)), 4)
    got = lab.go(model, ids, None, 16, attention_mask=mask, eos_token_id=ends, custom_generate=drafts)
    assert torch.equal(got, want)


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 9}])
def test_processors_see_what_they_see_without_drafts(lab: Any, options: dict[str, Any]):
    model = lab.model("llama")
    _, ids, mask = lab.padded(LENGTHS)
    end = int(lab.go(model, ids, None, 12, attention_mask=mask)[1, 3])
    want = lab.go(model, ids, None, 18, attention_mask=mask, eos_token_id=end, **options)
    drafts = remnant_hf.speculate(model, 3)
    got = lab.go(model, ids, None, 18, attention_mask=mask, eos_token_id=end, custom_generate=drafts, **options)
    assert torch.equal(got, want)


def test_stop_strings_and_return_sequences(lab: Any):
    model, tokenizer = load()
    ids = torch.tensor([tokenizer.encode("The committee met on Monday. The committee met")])
    word = tokenizer.decode(lab.go(model, ids, None, 16)[0, 5:7])
    more: dict[str, Any] = {"stop_strings": [word], "num_return_sequences": 2, "do_sample": True, "top_k": 1}
    want = lab.go(model, ids, None, 16, tokenizer=tokenizer, **more)
    drafts = remnant_hf.speculate("lookup", tokenizer=tokenizer)
    assert torch.equal(lab.go(model, ids, None, 16, custom_generate=drafts, **more), want)
    assert want.shape[0] == 2
    assert want.shape[1] < 16


def test_what_is_cached_is_what_a_fresh_pass_would_cache(lab: Any, replay: Any):
    """After rejected chains and compacted trees every row's keys equal those of its text read at once."""
    model = lab.model("llama")
    rows, ids, mask = lab.padded(LENGTHS)
    want = lab.go(model, ids, None, 12, attention_mask=mask)
    for branches in (False, True):
        drafter, target = replay(_texts(rows, want), branches), ModelTarget(model)
        out = generate(target, drafter, [row[0] for row in rows], 12, num_draft=5, drop_finished=False)
        for row, cache, new in zip(rows, target.caches, out.ids, strict=True):
            fresh = lab.full(model)
            with torch.no_grad():
                model(torch.cat([row[0], new])[None], past_key_values=fresh)
            n = cache.get_seq_length()
            assert n in (row.shape[1] + 11, 0)
            for mine, whole in zip(cache.layers, fresh.layers, strict=True):
                assert torch.allclose(mine.keys, whole.keys[:, :, :n], atol=1e-4)
                assert torch.allclose(mine.values, whole.values[:, :, :n], atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_tree_for_one_row_and_its_second_turn(lab: Any, replay: Any, name: str):
    model, ids, caches = lab.model(name), lab.ids(30), []
    for turn in range(2):
        if not turn:
            caches = [lab.full(model), lab.full(model)]
        want = lab.go(model, ids, caches[0], 14)
        drafts = remnant_hf.speculate(replay([torch.cat([ids, want], 1)[0]], branches=True), 6, tree=True)
        assert torch.equal(lab.go(model, ids, caches[1], 14, custom_generate=drafts), want)
        assert caches[0].get_seq_length() == caches[1].get_seq_length()
        ids = torch.cat([ids, want, lab.ids(6, seed=4)], 1)


def test_a_tree_over_an_evicting_cache_is_refused(lab: Any, replay: Any):
    model, ids = lab.model("llama"), lab.ids(30)
    drafts = remnant_hf.speculate(replay([lab.ids(60)[0]], branches=True), 6, tree=True)
    with pytest.raises(UnsupportedPolicy, match="tree over a cache that evicts"):
        lab.go(model, ids, lab.cache(model, "snapkv"), 14, custom_generate=drafts)


def test_a_tree_in_the_stock_loop_is_refused(lab: Any, replay: Any):
    model, ids = lab.model("llama"), lab.ids(30)
    with pytest.raises(ConfigError, match="tree=True"):
        lab.go(model, ids, None, 14, custom_generate=remnant_hf.speculate(replay([lab.ids(60)[0]], branches=True)))


@pytest.mark.parametrize("policy", [None, "snapkv", "lazyeviction"])
def test_a_tilt_towards_itself_changes_nothing(lab: Any, policy: str | None):
    """The drafter is the target: the mixture of p and p is p, over every cache."""
    model, ids = lab.model("llama"), lab.ids(40)
    make = (lambda: None) if policy is None else (lambda: lab.cache(model, policy))
    want = lab.go(model, ids, None if policy is None else lab.cache(model, policy), 16)
    drafts = remnant_hf.speculate(model, 3, tilt=Tilt("target"))
    assert torch.equal(lab.go(model, ids, make(), 16, custom_generate=drafts), want)
    if policy is None:
        drafts = remnant_hf.speculate(model, 3, tilt=Tilt("geometric", lam=0.7))
        assert torch.equal(lab.go(model, ids, None, 16, custom_generate=drafts), want)


def test_a_tilt_moves_the_output_to_the_drafter(lab: Any):
    model, other = lab.model("llama"), lab.model("llama", seed=5)
    ids = lab.ids(20)
    alone = lab.go(other, ids, None, 16)
    drafts = remnant_hf.speculate(other, 3, tilt=Tilt("geometric", lam=1.0))
    assert torch.equal(lab.go(model, ids, None, 16, custom_generate=drafts), alone)
    assert not torch.equal(lab.go(model, ids, None, 16), alone)


def test_a_plan_is_kept_to(lab: Any, replay: Any):
    model = lab.model("llama")
    rows, ids, mask = lab.padded(LENGTHS)
    want = lab.go(model, ids, None, 12, attention_mask=mask)
    memory = MemoryModel(model.config, None, torch.float32)
    made = plan(memory.total(3, 52, 4, lazy_logits=False), memory, 3, 52, lazy_logits=False, epsilon=0.0)
    assert isinstance(made, Plan)
    assert 2 <= made.n <= 4
    drafts = remnant_hf.speculate(replay(_texts(rows, want)), 6, plan=made)
    assert torch.equal(lab.go(model, ids, None, 12, attention_mask=mask, custom_generate=drafts), want)
    assert len(drafts.stats.by_position) == made.n - 1
    assert 0 < drafts.stats.peak_bytes <= made.bytes["kv"] + made.bytes["logits"]
    with pytest.raises(ConfigError, match="too many"):
        lab.go(model, ids, None, 40, attention_mask=mask, custom_generate=drafts)
    with pytest.raises(ConfigError, match="4 rows under a plan for 3"):
        lab.go(model, lab.ids(20, rows=4), None, 12, custom_generate=drafts)
    with pytest.raises(ConfigError, match="are missing"):
        remnant_hf.speculate("lookup", plan=plan(1000, memory, 3, 52))


def test_what_a_batch_cannot_have(lab: Any):
    model = lab.model("llama")
    _, ids, mask = lab.padded(LENGTHS)
    drafts = remnant_hf.speculate("lookup")
    with pytest.raises(ConfigError, match="output_scores"):
        lab.go(model, ids, None, 4, attention_mask=mask, custom_generate=drafts, return_dict_in_generate=True,
               output_scores=True)  # fmt: skip
    cache = lab.full(model)
    lab.go(model, ids, cache, 4, attention_mask=mask)
    with pytest.raises(ConfigError, match="rows over a cache that holds"):
        lab.go(model, ids, cache, 4, attention_mask=mask, custom_generate=drafts)
    latent = lab.model("dsv3")
    with pytest.raises(UnsupportedPolicy, match="expands them during attention"):
        lab.go(latent, ids, None, 4, attention_mask=mask, custom_generate=drafts)
