"""Re-rotated sinks equal a cache whose every key is rotated to its slot; rotations that are not known are refused."""

from typing import Any

import pytest
import torch

from remnant.errors import UnsupportedPolicy
from remnant.kv.positions import rotate
from remnant.kv.rope import rope_of


def turned(k: Any, by: int | Any, rope: Any) -> Any:
    """Keys `[1, H, S, D]` rotated forward by `by` positions."""
    at = torch.as_tensor(by).expand(k.shape[:3]).contiguous()
    return rotate(k, at, rope)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "phi3"])
@pytest.mark.parametrize("prompt", [60, 3])
def test_rerotated_sinks_equal_all_keys_rerotated(lab: Any, name: str, prompt: int):
    model, sinks, budget = lab.model(name), 4, 20
    rope = rope_of(model.config)
    cache = lab.cache(model, "streaming", budget, sinks=sinks, positions="rerotate")
    naive, ids, x = lab.full(model), lab.ids(prompt), lab.ids(30, seed=5)
    with torch.no_grad():
        first = model(ids, past_key_values=cache).logits
        assert (first - model(ids, past_key_values=naive).logits).abs().max() < 1e-5
        kept = list(range(prompt)) if prompt <= budget else [*range(sinks), *range(prompt - budget + sinks, prompt)]
        for layer in naive.layers:
            back = torch.arange(len(kept)) - torch.tensor(kept)
            layer.keys, layer.values = turned(layer.keys[:, :, kept], back, rope), layer.values[:, :, kept]
        for t in range(x.shape[1]):
            a = model(x[:, t : t + 1], past_key_values=cache).logits
            stored = naive.layers[0].keys.shape[2]
            at = torch.tensor([[stored]])
            b = model(x[:, t : t + 1], past_key_values=naive, position_ids=at).logits
            assert (a - b).abs().max() < 1e-5, f"token {t}"
            if stored + 1 > budget:
                for layer in naive.layers:
                    young = turned(layer.keys[:, :, sinks + 1 :], -1, rope)
                    layer.keys = torch.cat([layer.keys[:, :, :sinks], young], 2)
                    layer.values = torch.cat([layer.values[:, :, :sinks], layer.values[:, :, sinks + 1 :]], 2)
    assert cache.stats().evicted > 0


def test_rerotation_of_a_padded_batch_equals_rows(lab: Any):
    model = lab.model("llama")
    rows, ids, mask = lab.padded((50, 33, 15))
    options = {"sinks": 4, "positions": "rerotate"}
    together = lab.go(model, ids, lab.cache(model, "streaming", 20, **options), 16, attention_mask=mask)
    for i, row in enumerate(rows):
        assert torch.equal(lab.go(model, row, lab.cache(model, "streaming", 20, **options), 16)[0], together[i])


def scaled(lab: Any, kind: str) -> Any:
    more: dict[str, Any] = {
        "default": {},
        "linear": {"factor": 4.0},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
        "dynamic": {"factor": 4.0},
        "longrope": {
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    }[kind]
    return lab.config("llama", rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **more})


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_frequencies_are_those_of_the_model(lab: Any, kind: str):
    config = scaled(lab, kind)
    rotary = lab.build(config).model.rotary_emb
    rope = rope_of(config)
    assert torch.allclose(rope.inv_freq, rotary.inv_freq.float(), rtol=1e-6, atol=0)
    assert rope.scale == pytest.approx(float(rotary.attention_scaling))


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_scaled_rotations_can_be_rerotated(lab: Any, kind: str):
    model = lab.build(scaled(lab, kind))
    rope = rope_of(model.config)
    cache = lab.cache(model, "streaming", 20, sinks=4, positions="rerotate")
    with torch.no_grad():
        model(lab.ids(60), past_key_values=cache)
        plain = lab.full(model)
        model(lab.ids(60), past_key_values=plain)
    store = cache.layers[0].store
    # 40 of 60 went: the sinks moved forward by as much, and nothing else did.
    want = turned(plain.layers[0].keys[:, :, :4], 40, rope)
    assert torch.allclose(store.get("k")[:, :, :4], want, atol=1e-4)
    assert torch.equal(store.get("k")[:, :, 4:], plain.layers[0].keys[:, :, 44:])


def test_frequencies_per_layer_type(lab: Any):
    model = lab.model("gemma3")
    rotary = model.model.rotary_emb
    for kind in ("full_attention", "sliding_attention"):
        assert torch.allclose(rope_of(model.config, kind).inv_freq, getattr(rotary, f"{kind}_inv_freq").float())


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotations_that_change_with_length_are_refused(lab: Any, kind: str):
    from remnant_hf import RemnantCache

    config = scaled(lab, kind)
    with pytest.raises(UnsupportedPolicy, match=kind) as error:
        RemnantCache(config, "streaming", budget=20, positions="rerotate")
    assert "positions='keep'" in str(error.value)
    RemnantCache(config, "streaming", budget=20)


@pytest.mark.parametrize("model_type", ["glm", "glm4", "cohere", "deepseek_v3", "gptj"])
def test_interleaved_rotations_are_refused(lab: Any, model_type: str):
    from transformers import AutoConfig

    from remnant_hf import RemnantCache

    config = AutoConfig.for_model(model_type)
    with pytest.raises(UnsupportedPolicy, match=model_type):
        RemnantCache(config, "streaming", budget=20, positions="rerotate")


def test_a_row_shorter_than_its_sinks_turns_like_the_row_alone(lab: Any):
    """Padding must never be taken for a sink: the short row decodes as if it were alone."""
    model = lab.model("llama")
    rows = [torch.arange(5, 45)[None], torch.tensor([[9, 7]])]
    width = rows[0].shape[1]
    ids = torch.cat([torch.nn.functional.pad(r, (width - r.shape[1], 0)) for r in rows])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(r), (width - r.shape[1], 0)) for r in rows])
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}

    def cache() -> Any:
        return lab.cache(model, "streaming", 16, sinks=4, positions="rerotate")

    together = model.generate(ids, attention_mask=mask, past_key_values=cache(), **options)[:, width:]
    for row, got in zip(rows, together, strict=True):
        alone = model.generate(row, past_key_values=cache(), **options)[0, row.shape[1] :]
        assert torch.equal(alone, got)
