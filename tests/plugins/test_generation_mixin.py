"""What transformers' own generation tests do with `DynamicCache`, with ours in its place at an infinite budget."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

ARCHS = ("llama", "qwen3", "mistral", "phi3", "gemma3", "gptoss", "qwen3next", "dsv3")
POLICIES = ("snapkv", "h2o")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 20},
    "beam": {"num_beams": 2},
    "beam_sample": {"num_beams": 2, "do_sample": True},
    "group_return": {"num_beams": 3, "num_return_sequences": 2},
    "chunked": {"prefill_chunk_size": 8},
    "scores": {"return_dict_in_generate": True, "output_logits": True},
}


def both(lab: Any, name: str, policy: str) -> tuple[Any, tuple[Any, Any]]:
    model = lab.model(name, lab.attns(name)[0])
    return model, (DynamicCache(config=model.config), lab.cache(model, policy, 10_000))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ARCHS)
def test_modes(lab: Any, name: str, mode: str):
    if mode == "beam_sample" and name not in ("llama", "gemma3"):
        pytest.skip("two architectures are enough")
    model, caches = both(lab, name, POLICIES[len(mode) % 2])
    out = []
    for cache in caches:
        torch.manual_seed(1)
        got = model.generate(
            lab.ids(20, rows=2),
            attention_mask=torch.ones(2, 20, dtype=torch.long),
            past_key_values=cache,
            max_new_tokens=5,
            **{"do_sample": False, **MODES[mode]},
        )
        out.append(got)
    if mode == "scores":
        assert torch.equal(out[0].sequences, out[1].sequences)
        for a, b in zip(out[0].logits, out[1].logits, strict=True):
            assert (a - b).abs().max() < 1e-4
        assert out[1].past_key_values is caches[1]
    else:
        assert torch.equal(*out)
    assert caches[0].get_seq_length() == caches[1].get_seq_length()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ARCHS)
def test_left_padding(lab: Any, name: str, policy: str):
    model, caches = both(lab, name, policy)
    _, ids, mask = lab.padded((24, 13, 5))
    assert torch.equal(*(lab.go(model, ids, cache, 5, attention_mask=mask) for cache in caches))


@pytest.mark.parametrize("name", ARCHS)
def test_left_padding_does_not_change_the_next_token(lab: Any, name: str):
    model, _ = both(lab, name, "snapkv")
    ids = lab.ids(20)
    padded, mask = torch.cat([torch.zeros_like(ids[:, :7]), ids], 1), torch.ones(1, 27, dtype=torch.long)
    mask[:, :7] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        plain = model(ids, past_key_values=lab.cache(model, "snapkv", 10_000)).logits[:, -1]
        cache = lab.cache(model, "snapkv", 10_000)
        shifted = model(padded, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[:, -1]
    assert (plain - shifted).abs().max() < 1e-3


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "trimkv"])
@pytest.mark.parametrize("name", ARCHS)
def test_continue_from_past_key_values(lab: Any, name: str, policy: str):
    """Four tokens at once, or three and then one more from the returned cache."""
    model, caches = both(lab, name, policy)
    ids = lab.ids(20, rows=2)
    mask = torch.ones_like(ids)
    whole = lab.go(model, ids, caches[0], 4, attention_mask=mask)
    first = lab.go(model, ids, caches[1], 3, attention_mask=mask)
    so_far = torch.cat([ids, first], 1)
    last = lab.go(model, so_far, caches[1], 1, attention_mask=torch.ones_like(so_far))
    assert torch.equal(torch.cat([first, last], 1), whole)


@pytest.mark.parametrize("name", ARCHS)
def test_a_forward_pass_returns_the_cache_it_was_given(lab: Any, name: str):
    model, (_, cache) = both(lab, name, "snapkv")
    with torch.no_grad():
        out = model(lab.ids(6), past_key_values=cache, use_cache=True)
    assert out.past_key_values is cache
    assert cache.get_seq_length() == 6
    assert len(cache) == len(cache.layers)
