"""Lazy logits in `generate`: the tokens of eager ones, with one row of logits per row of the batch at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import remnant_hf
from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.speculative import MemoryModel, Plan, plan
from remnant.speculative.rapid import Tilt
from remnant_hf import _head
from remnant_hf._target import ModelTarget

LENGTHS = (40, 17, 29)


@contextmanager
def _heads(model: Any) -> Iterator[list[int]]:
    """How many states each call of the head was given, within the block."""
    calls: list[int] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[:-1].numel()))
    try:
        yield calls
    finally:
        hook.remove()


def _texts(rows: list[Any], answers: Any) -> list[Any]:
    return [torch.cat([row[0], answer]) for row, answer in zip(rows, answers, strict=True)]


@pytest.mark.parametrize("policy", [None, "full", "snapkv", "h2o", "lazyeviction", "keydiff", "trimkv"])
def test_chains_over_every_kind_of_cache(lab: Any, replay: Any, policy: str | None):
    """Rows of unequal length; the cache evicts at the prompt or while decoding."""
    model = lab.model("llama")
    rows, ids, mask = lab.padded((60, 37, 50))
    make = (lambda: None) if policy is None else (lambda: lab.cache(model, policy, 32))
    want = torch.cat([lab.go(model, row, make(), 24) for row in rows])
    stats, calls = [], []
    for lazy in (False, True):
        drafts = remnant_hf.speculate(replay(_texts(rows, want)), 4, lazy_logits=lazy)
        with _heads(model) as given:
            got = lab.go(model, ids, make(), 24, attention_mask=mask, custom_generate=drafts)
        assert torch.equal(got, want)
        stats.append(drafts.stats)
        calls.append(given)
    assert stats[0].accepted == stats[1].accepted
    assert stats[0].accepted > 12 or policy == "h2o"  # which evicts with every token and leaves drafts no room
    assert max(calls[1]) == 3  # one state per row, whatever is drafted
    assert max(calls[0]) > 9 or policy == "h2o"
    # The prompts, the roots, what was accepted, and once per model a look at two tokens.
    assert sum(calls[1]) <= 3 + stats[1].passes + stats[1].accepted + 4


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gemma3", "gptoss"])
def test_chains_and_trees_of_other_architectures(lab: Any, replay: Any, name: str):
    model = lab.model(name, lab.attns(name)[0])
    rows, ids, mask = lab.padded(LENGTHS)
    want = lab.go(model, ids, None, 20, attention_mask=mask)
    for branches in (False, True):
        drafts = remnant_hf.speculate(replay(_texts(rows, want), branches), 6, tree=branches, lazy_logits=True)
        with _heads(model) as calls:
            assert torch.equal(lab.go(model, ids, None, 20, attention_mask=mask, custom_generate=drafts), want)
        assert max(calls[3:]) <= 3
        assert drafts.stats.block_efficiency > 2


def test_prompts_in_blocks_end_in_different_ones(lab: Any, replay: Any):
    model = lab.model("llama")
    rows, ids, mask = lab.padded((60, 12, 33, 30, 7))
    want = lab.go(model, ids, None, 12, attention_mask=mask)
    drafts = remnant_hf.speculate(replay(_texts(rows, want)), 4, lazy_logits=True)
    with _heads(model) as calls:
        got = lab.go(model, ids, None, 12, attention_mask=mask, custom_generate=drafts, prefill_chunk_size=10)
    assert torch.equal(got, want)
    assert max(calls) == 5


def test_one_row_and_its_second_turn(lab: Any, replay: Any):
    model, ids = lab.model("llama"), lab.ids(30)
    for branches in (False, True):
        text, caches = ids, [lab.full(model), lab.full(model)]
        for _ in range(2):
            want = lab.go(model, text, caches[0], 14)
            drafter = replay([torch.cat([text, want], 1)[0]], branches)
            drafts = remnant_hf.speculate(drafter, 6, tree=branches, lazy_logits=True)
            assert torch.equal(lab.go(model, text, caches[1], 14, custom_generate=drafts), want)
            assert caches[0].get_seq_length() == caches[1].get_seq_length()
            text = torch.cat([text, want, lab.ids(6, seed=4)], 1)


@pytest.mark.parametrize("branches", [False, True])
def test_rows_end_at_different_places(lab: Any, replay: Any, branches: bool):
    model = lab.model("llama")
    rows, ids, mask = lab.padded(LENGTHS)
    free = lab.go(model, ids, None, 16, attention_mask=mask)
    ends = [int(free[0, 2]), int(free[1, 9])]
    want = lab.go(model, ids, None, 16, attention_mask=mask, eos_token_id=ends)
    drafts = remnant_hf.speculate(replay(_texts(rows, free), branches), 4, tree=branches, lazy_logits=True)
    with _heads(model) as calls:
        got = lab.go(model, ids, None, 16, attention_mask=mask, eos_token_id=ends, custom_generate=drafts)
    assert torch.equal(got, want)
    assert min(calls) == 1  # the last row walks alone


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 9}])
@pytest.mark.parametrize("branches", [False, True])
def test_processors_see_what_they_see_without_drafts(lab: Any, replay: Any, options: dict[str, Any], branches: bool):
    model = lab.model("llama")
    rows, ids, mask = lab.padded(LENGTHS)
    end = int(lab.go(model, ids, None, 12, attention_mask=mask)[1, 3])
    more = {"attention_mask": mask, "eos_token_id": end, **options}
    want = lab.go(model, ids, None, 18, **more)
    drafts = remnant_hf.speculate(replay(_texts(rows, want), branches), 4, tree=branches, lazy_logits=True)
    assert torch.equal(lab.go(model, ids, None, 18, custom_generate=drafts, **more), want)


@pytest.mark.parametrize(
    ("kind", "policy"),
    [(kind, policy) for kind in ("lookup", "model") for policy in (None, "snapkv", "keydiff")] + [("tree", None)],
)
def test_one_seed_gives_the_tokens_of_eager_logits(lab: Any, replay: Any, kind: str, policy: str | None):
    """Named and drawn chains, listed trees: the same uniforms decide the same places."""
    model, other = lab.model("llama"), lab.model("llama", seed=5)
    rows, ids, mask = lab.padded(LENGTHS)
    guess = _texts(rows, lab.go(model, ids, None, 16, attention_mask=mask))
    outs = []
    for lazy in (False, True):
        own = {"lookup": "lookup", "model": other, "tree": replay(guess, True)}[kind]
        drafts = remnant_hf.speculate(
            own, 4, tree=kind == "tree", generator=torch.Generator().manual_seed(7), lazy_logits=lazy
        )
        cache = None if policy is None else lab.cache(model, policy, 16)
        outs.append(
            lab.go(model, ids, cache, 20, attention_mask=mask, do_sample=True, temperature=3.0, custom_generate=drafts)
        )
    assert torch.equal(*outs)


def _capped(lab: Any) -> Any:
    """A Gemma 2 whose soft cap bends every logit."""
    import transformers

    config = lab.config("gemma3").to_dict()
    drop = ("model_type", "architectures", "rope_parameters", "rope_scaling", "sliding_window_pattern", "dtype")
    kept = {k: v for k, v in config.items() if k not in drop}
    return lab.build(transformers.Gemma2Config(**{**kept, "final_logit_softcapping": 2.0}), "eager")


def _scaled(lab: Any) -> Any:
    """A Cohere with its logit scale."""
    import transformers

    base = {k: getattr(lab.config("llama"), k) for k in ("vocab_size", "hidden_size", "intermediate_size")}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    ends = {"bos_token_id": 1, "eos_token_id": None}
    return lab.build(transformers.CohereConfig(**base, **heads, **ends, logit_scale=0.0625))


def _divided(lab: Any) -> Any:
    """A Granite with its divided logits."""
    import transformers

    base = {k: getattr(lab.config("llama"), k) for k in ("vocab_size", "hidden_size", "intermediate_size")}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    ends = {"bos_token_id": 1, "eos_token_id": None}
    return lab.build(transformers.GraniteConfig(**base, **heads, **ends, logits_scaling=8.0))


def _derived(lab: Any) -> Any:
    """A class of one's own that bends what its base gives."""
    return _crooked(lab, "bent")


@pytest.mark.parametrize("make", [_capped, _scaled, _divided, _derived])
def test_what_a_model_does_to_its_logits_is_done(lab: Any, make: Any):
    """It is the model's own code that runs behind the backbone; the bare head gives other logits."""
    model, ids = make(lab), lab.ids(12)
    place = torch.arange(12)[None]
    with torch.no_grad():
        whole = model(input_ids=ids, position_ids=place, use_cache=False)
        bare = model.lm_head(model.base_model(input_ids=ids, position_ids=place, use_cache=False).last_hidden_state)
    own = _head.halves(model)
    none = torch.zeros(1, dtype=torch.int64)
    first = own.run(none, none, input_ids=ids, position_ids=place, use_cache=False)
    rest = own.head(torch.zeros(11, dtype=torch.int64), torch.arange(1, 12))
    assert torch.allclose(torch.cat([first, rest]), whole.logits[0], atol=1e-5)
    assert not torch.allclose(bare, whole.logits, atol=0.1)
    outs = []
    for lazy in (False, True):
        drafts = remnant_hf.speculate("lookup", 4, generator=torch.Generator().manual_seed(3), lazy_logits=lazy)
        outs.append(lab.go(model, ids.repeat(1, 2), None, 24, do_sample=True, custom_generate=drafts))
    assert torch.equal(*outs)


class _Stream:
    def __init__(self) -> None:
        self.parts: list[Any] = []

    def put(self, value: Any) -> None:
        self.parts.append(value)


def _crooked(lab: Any, kind: str) -> Any:
    """A Llama whose logits cannot be made from one place alone."""
    import transformers

    base: Any = transformers.LlamaForCausalLM

    class Crooked(base):
        def forward(self, input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
            if kind == "around":  # it does not call its own backbone
                return lab.model("llama")(input_ids=input_ids, position_ids=position_ids, **kwargs)
            out = super().forward(input_ids=input_ids, position_ids=position_ids, **kwargs)
            if kind == "position":
                out.logits = out.logits + torch.arange(out.logits.shape[1])[:, None] * torch.arange(128)
            if kind == "bent":
                out.logits = 3 * out.logits.sinh()
            if kind == "ids":
                out.logits = out.logits.scatter(-1, input_ids[:, -1:, None], -9.0)
            return out

    torch.manual_seed(0)
    return Crooked(lab.config("llama")).eval()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("position", "differ by"),
        ("ids", "cannot be run without its backbone"),
        ("around", "does not call its 'model'"),
    ],
)
def test_a_model_that_cannot_is_refused_before_anything_is_read(lab: Any, kind: str, why: str):
    """By the flag, and by a plan that counts on it; without them it is served as ever."""
    model, ids = _crooked(lab, kind), lab.ids(20)
    memory = MemoryModel(model.config, None, torch.float32, host="engine")
    made = plan(memory.total(1, 40, 4), memory, 1, 40, lazy_logits=True, epsilon=0.0)
    assert isinstance(made, Plan)
    for drafts in (remnant_hf.speculate("lookup", 3, lazy_logits=True), remnant_hf.speculate("lookup", plan=made)):
        cache, stream = lab.full(model), _Stream()
        with pytest.raises(ConfigError, match=why):
            lab.go(model, ids, cache, 8, custom_generate=drafts, stream_to=stream)
        assert cache.get_seq_length() == 0
        assert not stream.parts
    with pytest.raises(ConfigError, match=why):
        ModelTarget(model).defer()
    drafts = remnant_hf.speculate("lookup", 3)
    assert torch.equal(lab.go(model, ids, None, 8, custom_generate=drafts), lab.go(model, ids, None, 8))


def test_a_hook_that_came_later_is_noticed(lab: Any):
    """The verdict on a model is kept only as long as nothing was put between its caller and its forward."""
    model = lab.build(lab.config("llama"))
    _head.halves(model)

    def louder(module: Any, args: Any, out: Any) -> Any:
        out.logits = out.logits * 2
        return out

    hook = model.register_forward_hook(louder)
    with pytest.raises(ConfigError, match="differ by"):
        _head.halves(model)
    hook.remove()
    _head.halves(model)


def test_a_plan_switches_it_on(lab: Any, replay: Any):
    model = lab.model("llama")
    rows, ids, mask = lab.padded(LENGTHS)
    want = lab.go(model, ids, None, 12, attention_mask=mask)
    memory = MemoryModel(model.config, None, torch.float32, host="engine")
    made = plan(memory.total(3, 52, 8), memory, 3, 52, lazy_logits=True, epsilon=0.0)
    assert isinstance(made, Plan)
    assert made.n >= 6
    drafts = remnant_hf.speculate(replay(_texts(rows, want)), plan=made)
    with _heads(model) as calls:
        assert torch.equal(lab.go(model, ids, None, 12, attention_mask=mask, custom_generate=drafts), want)
    assert max(calls) == 3
    assert drafts.stats.peak_bytes <= made.bytes["kv"] + made.bytes["logits"]
    with pytest.raises(ConfigError, match="counts on lazy logits"):
        remnant_hf.speculate("lookup", plan=made, lazy_logits=False)


def test_what_it_does_not_go_with(lab: Any, replay: Any):
    model, ids = lab.model("llama"), lab.ids(30)
    with pytest.raises(ConfigError, match="with a tilt"):
        remnant_hf.speculate(model, 3, tilt=Tilt("geometric", lam=0.5), lazy_logits=True)
    drafts = remnant_hf.speculate(replay([lab.ids(60)[0]], branches=True), 6, tree=True, lazy_logits=True)
    with pytest.raises(UnsupportedPolicy, match="tree over a cache that evicts"):
        lab.go(model, ids, lab.cache(model, "snapkv"), 14, custom_generate=drafts)
    drafts = remnant_hf.speculate("lookup", lazy_logits=True)
    with pytest.raises(ConfigError, match="lazy logits"):
        lab.go(model, ids, None, 4, custom_generate=drafts, return_dict_in_generate=True, output_scores=True)
    with pytest.raises(ConfigError, match="before defer"):
        ModelTarget(model).step_lazy(ids, ids, torch.tensor([30]))
