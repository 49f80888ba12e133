"""Reading pages: equal to naive attention with the other pages hidden, whatever else happens to the cache."""

import copy
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, DynamicCache, LlamaConfig, LlamaForCausalLM

from remnant.errors import ConfigError
from remnant.kv import get_policy
from remnant_hf import RemnantCache, speculate

PAGE, BUDGET = 4, 24
OPTIONS: dict[str, Any] = {"page": PAGE, "sink_pages": 1, "local_pages": 2, "dense_layers": 1}


class Brute:
    """Attention by plain products that reads, for single tokens, the pages a loop over pages chooses."""

    summary = "bounds"

    def __call__(self, module: Any, q: Any, k: Any, v: Any, mask: Any, **kw: Any) -> tuple[Any, None]:
        n, stored, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
        x = q @ k.repeat_interleave(group, 1).transpose(2, 3) * kw["scaling"]
        x = x.masked_fill(torch.ones(n, stored, dtype=torch.bool).triu(stored - n + 1), float("-inf"))
        if n == 1 and stored > BUDGET and module.layer_idx >= OPTIONS["dense_layers"]:
            for b in range(q.shape[0]):
                for head in range(k.shape[1]):
                    slots = self.unread(q[b, head * group : (head + 1) * group, 0], k[b, head])
                    x[b, head * group : (head + 1) * group, :, slots] = float("-inf")
        return (x.softmax(-1) @ v.repeat_interleave(group, 1)).transpose(1, 2), None

    def unread(self, group: Any, keys: Any) -> list[int]:
        """Slots of the pages that are not chosen."""
        count = -(-keys.shape[0] // PAGE)
        scores = []
        for page in range(count):
            some = keys[page * PAGE : (page + 1) * PAGE]
            if self.summary == "mean":
                scores.append(float(group.mean(0) @ some.mean(0)))
            else:
                scores.append(max(float(torch.maximum(q * some.amin(0), q * some.amax(0)).sum()) for q in group))
        always = {0, count - 1, count - 2}
        ranked = sorted(set(range(count)) - always, key=lambda page: scores[page], reverse=True)
        read = always | set(ranked[: BUDGET // PAGE - 3])
        return [slot for slot in range(keys.shape[0]) if slot // PAGE not in read]


BRUTE = Brute()


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=4096, initializer_range=0.15, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    AttentionInterface.register("brute_pages", BRUTE)
    other = copy.deepcopy(config)
    other._attn_implementation = "brute_pages"
    naive = LlamaForCausalLM(other).eval()
    naive.load_state_dict(model.state_dict())
    return model, naive


def ids(length: int, rows: int = 1, seed: int = 0) -> Any:
    return torch.randint(1, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def cache(model: Any, budget: int = BUDGET, **options: Any) -> RemnantCache:
    return RemnantCache(model.config, get_policy("kinetics", **{**OPTIONS, **options}), budget=budget)


@torch.no_grad()
def feed(model: Any, past: Any, part: Any, **more: Any) -> Any:
    return model(part, past_key_values=past, use_cache=True, **more).logits


@pytest.mark.parametrize("summary", ["bounds", "mean"])
def test_equal_to_hiding_the_other_pages(models: Any, summary: Any, monkeypatch: pytest.MonkeyPatch):
    """A prompt, single tokens over several page ends, a second turn, single tokens."""
    monkeypatch.setattr(BRUTE, "summary", summary)
    model, naive = models
    ours, theirs, stock, text = cache(model, summary=summary), DynamicCache(), DynamicCache(), ids(110, 2)
    apart = 0.0
    parts = [text[:, :50], *text[:, 50:75].split(1, 1), text[:, 75:83], *text[:, 83:].split(1, 1)]
    for part in parts:
        got, want = feed(model, ours, part), feed(naive, theirs, part)
        assert torch.allclose(got, want, atol=1e-5)
        apart = max(apart, float((got - feed(model, stock, part)).abs().max()))
    assert apart > 1e-3  # and it does read less than everything
    assert ours.stats().evicted == 0


def test_a_budget_above_the_text_changes_nothing(models: Any):
    model, _ = models
    given = {"input_ids": ids(40), "max_new_tokens": 20, "do_sample": False}
    assert torch.equal(model.generate(**given, past_key_values=cache(model, 400)), model.generate(**given))


def test_padded_rows_read_the_pages_of_a_lone_row(models: Any):
    model, _ = models
    lone, long = ids(41, seed=1), ids(52, seed=2)
    pad = 52 - 41
    both = torch.cat([torch.cat([torch.zeros(1, pad, dtype=torch.long), lone], 1), long])
    mask = torch.ones_like(both)
    mask[0, :pad] = 0
    given = {"max_new_tokens": 24, "do_sample": False}
    out = model.generate(both, attention_mask=mask, past_key_values=cache(model), **given)
    assert torch.equal(out[0, pad:], model.generate(lone, past_key_values=cache(model), **given)[0])
    assert torch.equal(out[1], model.generate(long, past_key_values=cache(model), **given)[0])


def test_beams_and_tokens_taken_back(models: Any):
    """Summaries follow rows that move, and a store that shrinks over the end of a page."""
    model, _ = models
    text = ids(70)
    one, two = cache(model), cache(model)
    feed(model, one, text[:, :40])
    feed(model, two, text[:, :40])
    for layer in one.governed:
        layer.activate_past_recording()
    feed(model, one, torch.cat([text[:, 40:42], ids(7, seed=9)], 1))
    one.crop(-7)
    for layer in one.governed:
        layer.record_past = False
    for part in text[:, 40:42].split(1, 1):
        feed(model, two, part)
    for part in text[:, 42:].split(1, 1):
        assert torch.allclose(feed(model, one, part), feed(model, two, part), atol=1e-5)
    rows: Any = torch.tensor([0, 0])
    one.reorder_cache(rows)
    assert torch.allclose(feed(model, one, text[:, :1].expand(2, -1))[1], feed(model, two, text[:, :1])[0], atol=1e-5)


def test_drafts_read_what_single_tokens_read(models: Any):
    model, _ = models
    text = ids(12).repeat(1, 5)
    given = {"input_ids": text, "max_new_tokens": 30, "do_sample": False}
    want = model.generate(**given, past_key_values=cache(model))
    got = model.generate(**given, past_key_values=cache(model), custom_generate=speculate("lookup", num_draft=4))
    assert torch.equal(got, want)


def test_refusals(models: Any):
    model, _ = models
    with pytest.raises(ConfigError, match="at least 4"):
        cache(model, 3)
    with pytest.raises(ConfigError, match="no budget"):
        RemnantCache(model.config, "kinetics")
    with pytest.raises(ConfigError, match="local_pages"):
        get_policy("kinetics", local_pages=0)
    with pytest.raises(ConfigError, match="summary"):
        get_policy("kinetics", summary="median")


@pytest.mark.parametrize(("tokens", "shares"), [(4, (0, 1, 0)), (8, (0, 2, 0)), (12, (1, 2, 0)), (30, (1, 2, 4))])
def test_a_small_budget_reads_the_newest_first(models: Any, tokens: int, shares: tuple[int, int, int]):
    model, _ = models
    past = cache(model, tokens)
    reads: Any = past.policy.reads
    assert reads.shares(tokens) == shares
    feed(model, past, ids(40))
    assert bool(feed(model, past, ids(1)).isfinite().all())
