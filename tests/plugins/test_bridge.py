"""The bridge: in place once, invisible to others, never silent, and no reason for memory to live on."""

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.modeling_utils import AttentionInterface

import remnant_hf
from remnant.errors import ConfigError, HostVersionError, UnsupportedPolicy
from remnant.kv import get_policy
from remnant_hf import RemnantCache, bridge


def test_install_is_idempotent_and_uninstall_restores(lab: Any):
    bridge.install()
    once = AttentionInterface.get_interface
    bridge.install()
    assert AttentionInterface.get_interface is once
    bridge.uninstall()
    try:
        original = AttentionInterface.get_interface
        assert original is not once
        assert original.__module__.startswith("transformers")
        assert not bridge.installed()
        bridge.uninstall()
        assert AttentionInterface.get_interface is original
        model = lab.model("llama")
        want = lab.go(model, lab.ids(20), lab.full(model))
    finally:
        bridge.install()
    assert bridge.installed()
    assert torch.equal(lab.go(model, lab.ids(20), lab.full(model)), want)
    lab.go(model, lab.ids(40), lab.cache(model))


def test_an_interface_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch):
    bridge.uninstall()
    monkeypatch.setattr(AttentionInterface, "get_interface", lambda self, name: None)
    with pytest.raises(HostVersionError, match="transformers"):
        bridge.install()
    monkeypatch.undo()
    bridge.install()


def test_transformers_below_the_floor_is_refused_at_import(monkeypatch: pytest.MonkeyPatch):
    import importlib

    import remnant.hosts

    monkeypatch.setattr(remnant.hosts, "version", lambda name: "5.18.0" if name == "transformers" else "1")
    with pytest.raises(HostVersionError, match=r"transformers 5\.18\.0 is installed") as error:
        importlib.reload(remnant_hf)
    assert "5.19" in str(error.value)
    assert "pip install" in str(error.value)
    monkeypatch.undo()
    importlib.reload(remnant_hf)


def test_untagged_calls_pass_through(lab: Any):
    model, ids = lab.model("llama"), lab.ids(20)
    seen = []

    def counted(module: Any, q: Any, k: Any, v: Any, mask: Any, **kw: Any) -> Any:
        seen.append((type(module).__name__, sorted(kw)))
        return q.transpose(1, 2), None

    wrapped = bridge._wrap(counted)
    q = torch.zeros(1, 4, 2, 16)
    out, _ = wrapped("module", q, q, q, None, scaling=1.0, own_option=3)
    assert torch.equal(out, q.transpose(1, 2))
    assert seen == [("str", ["own_option", "scaling"])]
    assert bridge._wrap(counted) is wrapped
    with torch.no_grad():
        model(ids, past_key_values=DynamicCache(config=model.config))
        assert not hasattr(model.model.layers[0].self_attn, bridge._TAG)


def test_six_threads_equal_one(lab: Any):
    model, ids = lab.model("llama"), lab.ids(50)
    kinds = [
        lambda: lab.cache(model, "snapkv", 24), lambda: lab.cache(model, "h2o", 16), lambda: lab.full(model),
        lambda: lab.cache(model, "adakv", 16), lambda: lab.cache(model, "think", 24),
        lambda: lab.cache(model, "streaming", 20, positions="rerotate"),
    ]  # fmt: skip
    want = [lab.go(model, ids, make(), 12) for make in kinds]
    got: list[Any] = [None] * 6

    def run(i: int) -> None:
        got[i] = lab.go(model, ids, kinds[i](), 12)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_six_threads_of_latent_attention(lab: Any):
    """The fallback for attention that builds new keys is per thread."""
    model, ids = lab.model("dsv3"), lab.ids(40)
    want = [lab.go(model, ids, lab.cache(model, "h2o", b)) for b in (16, 24)]
    got: list[Any] = [None] * 6

    def run(i: int) -> None:
        got[i] = lab.go(model, ids, lab.cache(model, "h2o", (16, 24)[i % 2]))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], want[i % 2]) for i in range(6))


@pytest.mark.parametrize("name", ["llama", "dsv3", "gemma3"])
@pytest.mark.parametrize("policy", ["snapkv", "h2o", "adakv", "d2o", "keydiff", "streaming"])
def test_memory_is_freed_by_reference_count_alone(lab: Any, name: str, policy: str):
    if name == "dsv3" and policy == "d2o":
        pytest.skip("refused")
    model = lab.model(name)
    gc.disable()
    try:
        cache = lab.cache(model, policy)
        lab.go(model, lab.ids(40), cache)
        key = cache.governed[-1].store.buffers["k"]
        assert not hasattr(key, bridge._TAG)
        refs = [weakref.ref(x) for x in (cache, cache.governed[-1], key)]
        del cache, key
        assert [r() for r in refs] == [None, None, None]
    finally:
        gc.enable()


class OwnSoftmax(torch.nn.Module):
    """An attention class of the old kind: it updates the cache and multiplies by itself."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index

    def forward(self, q: Any, k: Any, v: Any, cache: Any) -> Any:
        n = q.shape[2]
        k, v = cache.update(k, v, self.layer_idx)
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        ahead = torch.ones(n, k.shape[2], dtype=torch.bool).triu(k.shape[2] - n + 1)
        return logits.masked_fill(ahead, float("-inf")).softmax(-1) @ v


def tokens(n: int, seed: int) -> tuple[Any, Any, Any]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, h, n, 16, generator=g) for h in (4, 2, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "lazyeviction", "adakv", "think", "expected"])
def test_update_without_attention_is_never_silent(lab: Any, policy: str):
    cache = lab.cache(lab.model("llama"), policy)
    OwnSoftmax(0)(*tokens(40, 0), cache)
    with pytest.raises(UnsupportedPolicy, match=f"{policy}.*cannot see") as error:
        OwnSoftmax(1)(*tokens(40, 0), cache)
    assert "AttentionInterface" in str(error.value)
    assert "streaming" in str(error.value)


@pytest.mark.parametrize("policy", ["window", "streaming", "knorm", "keydiff", "random"])
def test_policies_that_need_no_attention_work_without_it(lab: Any, policy: str):
    cache = lab.cache(lab.model("llama"), policy)
    layers = [OwnSoftmax(i) for i in range(3)]
    for step in range(20):
        for layer in layers:
            layer(*tokens(40 if step == 0 else 1, step), cache)
    stats = cache.stats()
    assert stats.seen == 59
    assert all(n <= 24 + cache.policy.slack + 1 for layer in stats.layers for n in layer.stored[0])


def test_a_forgotten_attention_is_noticed_at_the_last_layer_too(lab: Any):
    cache = lab.cache(lab.model("llama"), "snapkv")
    OwnSoftmax(0)(*tokens(40, 0), cache)
    with pytest.raises(UnsupportedPolicy, match="layer 0"):
        OwnSoftmax(0)(*tokens(1, 1), cache)


@pytest.mark.parametrize("model_type", ["bloom", "mpt"])
def test_biased_attention_is_refused(model_type: str):
    config = AutoConfig.for_model(model_type)
    with pytest.raises(UnsupportedPolicy, match=f"{model_type}.*ALiBi"):
        RemnantCache(config, "streaming", budget=20)


def test_falcon_with_alibi_is_refused():
    with pytest.raises(UnsupportedPolicy, match="ALiBi"):
        RemnantCache(AutoConfig.for_model("falcon", alibi=True), "streaming", budget=20)
    RemnantCache(AutoConfig.for_model("falcon", alibi=False), "streaming", budget=20)


@pytest.mark.parametrize("family", ["codegen", "biogpt", "xglm", "gpt_neo"])
def test_families_without_the_interface_work_or_say_why(family: str):
    """Nobody gets a cache that was never compressed without being told."""
    small = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "n_layer": 2,
        "n_head": 4, "n_embd": 32, "d_model": 32, "attention_heads": 4, "num_layers": 2, "num_heads": 4,
        "rotary_dim": 8, "intermediate_size": 32, "ffn_dim": 32, "attention_types": [[["global"], 2]],
        "max_position_embeddings": 256, "n_positions": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    plain = AutoConfig.for_model(family)
    known = {k: v for k, v in small.items() if k in plain.to_dict() or k in plain.attribute_map}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **known)).eval()
    ids = torch.randint(2, 60, (1, 40), generator=torch.Generator().manual_seed(0))
    cache = RemnantCache(model.config, "snapkv", budget=24, window=8)
    try:
        model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=4)
    except UnsupportedPolicy:
        return
    assert cache.stats().evicted > 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("no model", "snapkv", 10), "model or its configuration"),
        ((None, "snapkv", 10), "model or its configuration"),
    ],
)
def test_a_wrong_first_argument(given: Any, says: str):
    with pytest.raises(ConfigError, match=says):
        RemnantCache(*given)


def test_arguments_are_checked_with_helpful_text(lab: Any):
    config = lab.config("llama")
    with pytest.raises(ConfigError, match="budget=1024"):
        RemnantCache(config, "snapkv")
    with pytest.raises(ConfigError, match="did you mean 'snapkv'"):
        RemnantCache(config, "snapvk", budget=64)
    with pytest.raises(ConfigError, match=r"windw.*did you mean 'window'"):
        RemnantCache(config, "snapkv", budget=64, windw=8)
    with pytest.raises(ConfigError, match="at least 33 tokens"):
        RemnantCache(config, "snapkv", budget=16)
    for bad in (0, -1, 0.5, True, "64"):
        with pytest.raises(ConfigError, match="integer of at least 1"):
            RemnantCache(config, "snapkv", budget=bad)  # type: ignore[arg-type]
    for bad in (0, True, -3, 2.5, "64"):
        with pytest.raises(ConfigError, match="prefill_block"):
            RemnantCache(config, "snapkv", budget=64, prefill_block=bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="beside a policy object"):
        RemnantCache(config, get_policy("snapkv"), budget=64, window=8)
    with pytest.raises(ConfigError, match="a name or a policy object"):
        RemnantCache(config, 3, budget=64)  # type: ignore[arg-type]
    assert RemnantCache(config, "full").budget > 1 << 30
    cache = RemnantCache(lab.config("gemma3"), "snapkv", budget=64)
    with pytest.raises(ConfigError, match=r"layer 0 is not under policy 'snapkv'; accepted: 1, 3"):
        cache.kept_positions(0)


def test_a_pass_that_raised_leaves_nothing_to_the_next(lab):
    """Keys were stored, their attention never came: a later pass over a stock cache is not taken for it."""
    model = lab.model("llama")
    ids = torch.randint(1, 64, (1, 12), generator=torch.Generator().manual_seed(0))
    want = lab.go(model, ids.expand(3, -1), None, 4)
    cache = RemnantCache(model.config, "snapkv", budget=64, window=4)
    for rows in (1, 3):
        state = torch.zeros(rows, model.config.num_key_value_heads, 12, 32)
        cache.update(state, state, 0)  # alive, and waiting for its attention
        assert torch.equal(lab.go(model, ids.expand(3, -1), None, 4), want)
        cache = RemnantCache(model.config, "snapkv", budget=64, window=4)
