"""Every way to call `generate`: sampling, beams, chunks, drafts, turns, copies of a prefix, undo, rows."""

import copy
import warnings
from typing import Any

import pytest
import torch
from transformers.generation.candidate_generator import CandidateGenerator

from remnant.errors import ConfigError

ENDLESS = 10_000


class Proxy:
    """Forwards to the model and replaces the drafter only, so that the model itself is not changed."""

    def __init__(self, model: Any, drafter: Any) -> None:
        self.__dict__.update(_model=model, _drafter=drafter)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return self._model(*args, **kw)

    def _get_candidate_generator(self, **_: Any) -> Any:
        return self._drafter


def assisted(model: Any, input_ids: Any, drafter: Any = None, **kw: Any) -> Any:
    """For `custom_generate=`."""
    return type(model)._assisted_decoding(Proxy(model, drafter), input_ids, **kw)


class Replay(CandidateGenerator):
    """Drafts a known continuation with every third token wrong; nothing at the first call unless `eager`."""

    def __init__(self, full: Any, k: int = 4, eager: bool = False, cache: Any = None) -> None:
        self.full, self.k, self.wait, self.cache, self.accepted = full, k, not eager, cache, []

    def get_candidates(self, input_ids: Any, **_: Any) -> Any:
        if self.wait:
            self.wait = False
            return input_ids, None
        k = self.k if self.cache is None else min(self.k, self.cache.tokens_until_eviction() - 1)
        draft = self.full[:, input_ids.shape[1] : input_ids.shape[1] + max(k, 0)].clone()
        if draft.shape[1] > 2:
            draft[:, 2] = (draft[:, 2] + 1) % 128
        return torch.cat([input_ids, draft], 1), None

    def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: Any) -> None:
        self.accepted.append(int(num_matches))


def test_sampling_with_a_seed(lab: Any):
    model, ids = lab.model("qwen3"), lab.ids(30, rows=2)
    out = []
    for cache in (lab.full(model), lab.cache(model, "h2o", ENDLESS)):
        torch.manual_seed(7)
        out.append(lab.go(model, ids, cache, 12, do_sample=True, temperature=1.5, top_k=20))
    assert torch.equal(*out)


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "trimkv", "adakv", "think", "lazyeviction"])
def test_beams_and_return_sequences_at_an_infinite_budget(lab: Any, policy: str):
    model, ids = lab.model("llama"), lab.ids(30, rows=2)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    want = lab.go(model, ids, lab.full(model), **beams)
    assert torch.equal(lab.go(model, ids, lab.cache(model, policy, ENDLESS), **beams), want)
    out = []
    for cache in (lab.full(model), lab.cache(model, policy, ENDLESS)):
        torch.manual_seed(7)
        out.append(lab.go(model, ids, cache, do_sample=True, num_return_sequences=3))
    assert torch.equal(*out)
    assert out[0].shape[0] == 6


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "trimkv", "adakv", "think", "lazyeviction", "keydiff"])
def test_compressed_beams_equal_rows_of_their_own(lab: Any, policy: str):
    """Reordering must move keys, values and side state: a beam replayed alone ends with the same cache and scores."""
    model, ids = lab.model("llama"), lab.ids(40)
    cache = lab.cache(model, policy)
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=20, num_beams=3,
        num_return_sequences=3, do_sample=False, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
        own, total = lab.cache(model, policy), 0.0
        with torch.no_grad():
            logits = model(ids, past_key_values=own).logits[0, -1]
            for token in sequence[ids.shape[1] :]:
                total += float(logits.log_softmax(-1)[token])
                logits = model(token.view(1, 1), past_key_values=own).logits[0, -1]
        assert abs(total / 20 - float(score)) < 1e-4


@pytest.mark.parametrize("policy", ["h2o", "trimkv", "adakv", "think", "lazyeviction", "snapkv"])
def test_rows_can_be_reordered_repeated_and_selected(lab: Any, policy: str):
    model, ids = lab.model("llama"), lab.ids(40, rows=2)
    cache = lab.cache(model, policy)
    lab.go(model, ids, cache, 6)
    before = [cache.kept_positions(0), *({n: x.clone() for n, x in cache.layers[0].store.dense().side.items()},)]
    probe = lab.ids(1, rows=2, seed=11)

    def logits(c: Any, x: Any) -> Any:
        with torch.no_grad():
            return model(x, past_key_values=c).logits[:, -1]

    want = logits(copy.deepcopy(cache), probe)
    repeated = copy.deepcopy(cache)
    repeated.batch_repeat_interleave(2)
    assert torch.allclose(logits(repeated, probe.repeat_interleave(2, 0)), want.repeat_interleave(2, 0), atol=1e-5)
    selected = copy.deepcopy(cache)
    selected.batch_select_indices(torch.tensor([1]))
    assert torch.allclose(logits(selected, probe[1:]), want[1:], atol=1e-5)
    cache.reorder_cache(torch.tensor([1, 0]))
    swapped = cache.kept_positions(0)
    for row in (0, 1):
        a, b = before[0][1 - row], swapped[row]
        assert [h[h >= 0].tolist() for h in a] == [h[h >= 0].tolist() for h in b]
    side = cache.layers[0].store.dense().side
    assert all(torch.equal(side[name][0], x[1]) for name, x in before[1].items()) or policy == "adakv"
    assert torch.allclose(logits(cache, probe.flip(0)), want.flip(0), atol=1e-5)


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "streaming", "keydiff", "adakv"])
def test_blocks_bound_the_peak(lab: Any, policy: str):
    model, ids, budget, block = lab.model("llama"), lab.ids(600), 128, 64
    cache = lab.cache(model, policy, budget, prefill_block=block)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lab.go(model, ids, cache, 4, prefill_chunk_size=block)
    slots, size = 0, 0
    for layer in cache.layers:
        buffers = layer.store.buffers.values()
        slots, size = slots + buffers.mapping["pos"].numel(), size + sum(x.nbytes for x in buffers)
    allowed = size / slots * 3 * 2 * (budget + block)  # bytes of a slot with its side state, layers, heads
    stats = cache.stats()
    assert stats.allocated == size
    assert stats.peak_bytes <= 1.10 * allowed


def test_a_prompt_that_comes_whole_is_warned_about(lab: Any):
    model = lab.model("llama")
    with pytest.warns(UserWarning, match="prefill_chunk_size=64 to generate"):
        lab.go(model, lab.ids(200), lab.cache(model, "snapkv", 128, prefill_block=64), 2)


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "trimkv", "adakv", "think", "lazyeviction"])
def test_chunks_at_an_infinite_budget(lab: Any, policy: str):
    model, ids = lab.model("llama"), lab.ids(50)
    want = lab.go(model, ids, lab.full(model))
    assert torch.equal(lab.go(model, ids, lab.cache(model, policy, ENDLESS), prefill_chunk_size=16), want)


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "trimkv", "adakv", "keydiff", "lazyeviction", "streaming"])
def test_stock_drafters_at_an_infinite_budget(lab: Any, policy: str):
    model, ids = lab.model("llama"), lab.ids(8).repeat(1, 4)
    want = lab.go(model, ids, lab.full(model), 16)
    got = lab.go(model, ids, lab.cache(model, policy, ENDLESS), 16, prompt_lookup_num_tokens=3)
    assert torch.equal(got, want)
    helper = lab.model("llama", seed=5)
    assert torch.equal(lab.go(model, ids, lab.cache(model, policy, ENDLESS), 16, assistant_model=helper), want)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("policy", ["snapkv", "adakv", "think", "pyramidkv"])
def test_own_drafts_on_a_compressed_prompt(lab: Any, name: str, policy: str):
    """Equal to the cache's own greedy output, if nothing is drafted at the first call."""
    model, ids = lab.model(name), lab.ids(70)
    greedy = lab.go(model, ids, lab.cache(model, policy), 24)
    drafter = Replay(torch.cat([ids, greedy], 1))
    cache = lab.cache(model, policy)
    got = lab.go(model, ids, cache, 24, custom_generate=assisted, drafter=drafter)
    assert torch.equal(got, greedy)
    assert sum(drafter.accepted) > 6
    assert cache.stats().evicted > 0


@pytest.mark.parametrize("policy", ["lazyeviction", "keydiff", "trimkv", "snapkv"])
def test_own_drafts_clamped_to_the_next_eviction(lab: Any, policy: str):
    model, ids = lab.model("llama"), lab.ids(40)
    options = {"snapkv": {"refresh": 8}, "keydiff": {"slack": 8}, "trimkv": {"buffer": 8}}.get(policy, {})
    plain = lab.cache(model, policy, **options)
    greedy = lab.go(model, ids, plain, 40)
    cache = lab.cache(model, policy, **options)
    drafter = Replay(torch.cat([ids, greedy], 1), cache=cache)
    got = lab.go(model, ids, cache, 40, custom_generate=assisted, drafter=drafter)
    assert torch.equal(got, greedy)
    assert sum(drafter.accepted) > 8
    assert cache.get_seq_length() - plain.get_seq_length() in (0, 1)


def test_crop_is_exact_or_an_error(lab: Any):
    model, ids = lab.model("llama"), lab.ids(40)
    for policy in ("snapkv", "h2o", "lazyeviction", "adakv", "think"):
        cache = lab.cache(model, policy)
        with torch.no_grad():
            model(ids, past_key_values=cache)
            with pytest.raises(ConfigError, match="only 0 arrived") if policy != "lazyeviction" else no_error():
                cache.crop(-1 if policy != "lazyeviction" else 0)
            plain = copy.deepcopy(cache)
            cache.activate_past_recording()
            model(lab.ids(5, seed=9), past_key_values=cache)
            cache.crop(-5)
            for layer in cache.layers:
                layer.record_past = False
            assert cache.get_seq_length() == 40
            x = lab.ids(1, seed=10)
            a, b = (model(x, past_key_values=c).logits for c in (cache, plain))
        assert (a - b).abs().max() < 1e-5


def no_error() -> Any:
    import contextlib

    return contextlib.nullcontext()


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "adakv", "think", "lazyeviction", "streaming"])
def test_turns_with_full_ids_and_with_new_ids(lab: Any, policy: str):
    model = lab.model("llama")
    a, b = (lab.cache(model, policy) for _ in range(2))
    ids = lab.ids(50)
    for turn in range(3):
        full = lab.go(model, ids, a)
        if turn:
            mask = torch.ones_like(ids)
            new = ids[:, b.get_seq_length() :]
            out = model.generate(new, attention_mask=mask, past_key_values=b, max_new_tokens=8, do_sample=False)
            assert torch.equal(out[:, new.shape[1] :], full)
        else:
            assert torch.equal(lab.go(model, ids, b), full)
        ids = torch.cat([ids, full, lab.ids(6, seed=40 + turn)], 1)
    assert a.get_seq_length() == b.get_seq_length() == ids.shape[1] - 7


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "adakv", "think", "lazyeviction", "pyramidkv"])
def test_a_copied_prefix_serves_two_continuations(lab: Any, policy: str):
    model, prefix = lab.model("llama"), lab.ids(50)
    cache = lab.cache(model, policy)
    with torch.no_grad():
        model(prefix, past_key_values=cache)
    for seed in (50, 51):
        ids = torch.cat([prefix, lab.ids(6, seed=seed)], 1)
        fresh = lab.cache(model, policy)
        with torch.no_grad():
            model(prefix, past_key_values=fresh)
        shared = copy.deepcopy(cache)
        assert torch.equal(lab.go(model, ids, shared), lab.go(model, ids, fresh))
        assert shared.stats() == fresh.stats()
    assert cache.get_seq_length() == 50


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "adakv", "think", "lazyeviction"])
def test_reset_and_offload(lab: Any, policy: str):
    model, ids = lab.model("llama"), lab.ids(50)
    cache = lab.cache(model, policy)
    first = lab.go(model, ids, cache)
    stats = cache.stats()
    cache.offload()
    assert cache.stats() == stats
    cache.prefetch()
    assert cache.stats() == stats
    more = torch.cat([ids, first, lab.ids(5, seed=12)], 1)
    second = lab.go(model, more, cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.stats().bytes == 0
    assert torch.equal(lab.go(model, ids, cache), first)
    assert cache.stats().layers == stats.layers
    assert torch.equal(lab.go(model, more, cache), second)


def test_stopping_criteria_and_processors_see_every_step(lab: Any):
    from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

    calls: list[int] = []

    class Count(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            calls.append(input_ids.shape[1])
            return scores

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 45, dtype=torch.bool)

    model = lab.model("llama")
    extra = {"logits_processor": LogitsProcessorList([Count()]), "stopping_criteria": StoppingCriteriaList([Stop()])}
    out = lab.go(model, lab.ids(40), lab.cache(model), 30, **extra)
    assert out.shape[1] == 5
    assert calls == [40, 41, 42, 43, 44]
