"""The EAGLE-3 forward against drafting one token at a time, what it refuses, and acceptance of its chains by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from remnant.errors import ConfigError, RemnantError, ShapeError
from remnant.speculative.vocab_chain import measure_chain
from remnant.speculative.vocab_counts import Tokens
from remnant.speculative.vocab_map import VocabMap
from remnant.speculative.vocab_measure import measure

pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")

from remnant.speculative.eagle3 import Eagle3, load_eagle3
from remnant.speculative.eagle3_pair import Eagle3Pair
from remnant.speculative.eagle3_shape import Eagle3Shape

V, D = 40, 16
CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"], "hidden_size": D, "intermediate_size": 24, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": V, "draft_vocab_size": V, "num_hidden_layers": 1, "hidden_act": "silu",
}  # fmt: skip


def head(seed: int = 0, **config: Any) -> Eagle3:
    shape = Eagle3Shape.from_config({**CONFIG, **config})
    kept = None if shape.rows == V else VocabMap.from_ids(torch.arange(shape.rows) * 3, V)
    model, source = Eagle3(shape, kept=kept), torch.Generator().manual_seed(seed)
    for name, x in model.named_parameters():
        x.data = torch.randn(x.shape, generator=source) * 0.4 + float("norm" in name)
    return model.eval()


def write(folder: Path, model: Eagle3, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    tables = {} if model.kept is None else model.kept.to_tensors()
    save_file({**model.state_dict(), **tables}, folder / "model.safetensors")
    return folder


def target(layers: int = 3, **config: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: Any = {
        "hidden_size": D, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": V, "num_hidden_layers": layers, "initializer_range": 0.4, **config,
    }  # fmt: skip
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def text(length: int, seed: int = 1) -> Tensor:
    return torch.randint(V, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "config", [{}, {"norm_before_residual": True}, {"norm_output": True}, {"draft_vocab_size": 12}]
)
def test_a_chain_is_drafting_one_token_at_a_time(config: dict[str, Any]):
    """From every token: the text's states so far, then the drafter's own, one row more with every draft."""
    model, length, steps = head(**config), 9, 3
    embeds, states = torch.randn(1, length, D), torch.randn(1, length, 3 * D)
    found = model(embeds, states, steps)
    assert [x.shape for x in found] == [(1, length, V)] * steps
    for start in range(length - steps):
        fused = model.fc(states[:, : start + 1])
        for step in range(1, steps + 1):
            turn = model._rotary(embeds, 0, start + step)
            out = model.midlayer(embeds[:, 1 : start + step + 1], fused, turn, [])[:, -1:]
            normed = model.norm(out)
            fused = torch.cat([fused, normed if config.get("norm_output") else out], 1)
            logits = found[step - 1][0, start + step]
            logits = logits if model.kept is None else logits[model.kept.keep]
            assert torch.allclose(model.lm_head(normed)[0, 0], logits, atol=1e-5)
    for step, x in enumerate(found, 1):
        assert torch.isinf(x[0, :step]).all()
        kept = torch.arange(V) if model.kept is None else model.kept.keep
        assert torch.isfinite(x[0, step:]).sum(-1).tolist() == [len(kept)] * (length - step)
        assert torch.isfinite(x[0, step:, kept]).all()


@pytest.mark.parametrize("length", [1, 2, 3])
def test_texts_shorter_than_a_chain(length: int):
    found = head()(torch.randn(1, length, D), torch.randn(1, length, 3 * D), 4)
    assert [int(torch.isfinite(x).any(-1).sum()) for x in found] == [max(0, length - step) for step in (1, 2, 3, 4)]


def test_states_of_another_size():
    with pytest.raises(ShapeError, match=r"accepted: \[B, T, 16\], \[B, T, 48\]"):
        head()(torch.randn(1, 4, D), torch.randn(1, 4, 2 * D))


def test_a_scaled_rotary_embedding_turns_otherwise():
    scaled = {"rope_type": "linear", "factor": 4.0}
    embeds, states = torch.randn(1, 8, D), torch.randn(1, 8, 3 * D)
    configs: list[dict[str, Any]] = [
        {"rope_theta": 500.0},
        {"rope_theta": 500.0, "rope_scaling": scaled},
        {"rope_parameters": {**scaled, "rope_theta": 500.0}},
    ]
    plain, old, new = (head(**config)(embeds, states)[0][0, 1:] for config in configs)
    assert torch.equal(old, new)
    assert not torch.allclose(old, plain, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["Eagle3Qwen3ForCausalLM"]}, "type ['Eagle3Qwen3ForCausalLM']; accepted: LlamaForCausalLM"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2; accepted: 1; trim by counts, with --held-out 0"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'; accepted: silu"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"fc_norm": True}, "fc_norm True"),
        ({"eagle_config": {"norm_before_fc": True}}, "norm_before_fc True"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "without auxiliary states"),
        ({"logit_scale": 0.5}, "logit_scale 0.5"),
        ({"layer_types": ["sliding_attention"]}, "layer_types ['sliding_attention']"),
        ({"hidden_size": None}, "hidden_size None; accepted: a size"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "3 heads over 2 of keys"),
    ],
)
def test_configurations_that_are_refused(config: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as error:
        Eagle3Shape.from_config({**CONFIG, **config})
    assert said in str(error.value)


def test_which_states_are_read():
    assert Eagle3Shape.from_config(CONFIG).layers_of(32) == (2, 16, 29)
    key = "eagle_aux_hidden_state_layer_ids"
    assert Eagle3Shape.from_config({**CONFIG, key: [3, 1, 3]}).layers_of(4) == (1, 3)
    assert Eagle3Shape.from_config({**CONFIG, "eagle_config": {key: [0, 2]}}).layers_of(4) == (0, 2)
    for ids in ([4], [-1, 2]):
        with pytest.raises(ConfigError, match="of a target of 4 layers; accepted: 0 to 3"):
            Eagle3Shape.from_config({**CONFIG, key: ids}).layers_of(4)


def test_files(tmp_path: Path):
    """Both spellings of the layer, a trimmed head, an embedding of its own."""
    model = head(draft_vocab_size=12)
    folder = write(tmp_path / "a", model, draft_vocab_size=12)
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("midlayer.", "layers.0."): x for name, x in weights.items()}
    save_file({**renamed, "embed_tokens.weight": torch.ones(V, D)}, folder / "model.safetensors")
    found = load_eagle3(folder)
    assert found.kept is not None
    assert model.kept is not None
    assert found.kept.keep.tolist() == model.kept.keep.tolist()
    assert found.embed_tokens is not None
    states = found.state_dict()
    assert all(torch.equal(x, states[name]) for name, x in model.state_dict().items())
    assert load_eagle3(folder, torch.bfloat16).fc.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("midlayer.hidden_norm.weight"), "without midlayer.hidden_norm.weight; accepted: the parts of"),
        (lambda w: w.update({"midlayer.self_attn.q_norm.weight": torch.ones(8)}), "with midlayer.self_attn.q_norm"),
        (lambda w: w.update({"midlayer.mlp.up_proj.weight": torch.ones(23, D)}), "up_proj.weight of [23, 16]"),
        (lambda w: w.update({"fc.weight": torch.ones(D, 40)}), "fc.weight over 40 channels; accepted: a multiple of"),
        (lambda w: w.pop("fc.weight"), "fc.weight over 0 channels"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, change: Callable[[dict[str, Tensor]], None], said: str):
    folder = write(tmp_path / "a", head())
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(RemnantError) as error:
        load_eagle3(folder)
    assert said in str(error.value)


def test_another_kind_of_drafter(tmp_path: Path):
    target().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a drafter of type LlamaForCausalLM; accepted: EAGLE-3"):
        load_eagle3(tmp_path)


def test_beside_its_target():
    """The states are those that the layers read; the target reads a text once; a beginning shifts nothing."""
    model, inner = target(), head()
    reads: list[int] = []
    model.register_forward_pre_hook(lambda *_: reads.append(1))
    pair, ids = Eagle3Pair(model, inner), text(7)
    logits, drafted = pair.target(ids), pair.draft(ids)
    assert len(reads) == 1
    assert torch.isinf(drafted[0, 0]).all()
    layers: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, **__: layers.append(given[0])) for layer in model.model.layers
    ]
    assert torch.allclose(model(ids).logits, logits, atol=1e-6)
    for hook in hooks:
        hook.remove()
    wanted = inner(model.model.embed_tokens(ids), torch.cat(layers, -1))[0]
    assert torch.allclose(drafted[0, 1:], wanted[0, 1:], atol=1e-5)
    begun = Eagle3Pair(model, inner, begin=ids[0, :2].tolist())
    assert torch.allclose(begun.draft(ids[:, 2:]), drafted[:, 2:], atol=1e-5)
    assert torch.allclose(begun.target(ids[:, 2:]), logits[:, 2:], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "config", "said"),
    [
        ({"layers": 2}, {}, "accepted: 0 to 1"),
        ({"layers": 4}, {}, "a drafter of 3 states, states [1, 2] of the target"),
        ({"vocab_size": V + 1}, {}, "accepted: 16, 40, 16, as the drafter was made for"),
        ({"hidden_size": 32}, {}, "a target of 32 channels"),
        ({}, {"hidden_size": 32, "target_hidden_size": D}, "embeddings of 16; accepted: 16, 40, 32"),
    ],
)
def test_another_target(options: dict[str, Any], config: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as error:
        Eagle3Pair(target(**options), head(**config))
    assert said in str(error.value)


def test_a_first_token_is_not_compared():
    pair, kept = Eagle3Pair(target(), head()), VocabMap.from_ids(torch.arange(V), V)
    whole, positions, [row] = measure(pair.target, pair.draft, [Tokens(text(8)[0])], [kept])
    assert positions == 6  # of seven places with a token after them the first has no state before it
    assert 0 < whole < 1
    assert whole == pytest.approx(row.acceptance)


def test_chains_by_hand():
    """The target always says 1. Drafts: first 1, but 0 at place 3; second 1; third 2. At place 0 nothing is drafted."""
    ids = torch.zeros(8, dtype=torch.int64)

    def always(token: int, *others: tuple[int, int]) -> Tensor:
        z = torch.full((1, 8, 4), -9.0)
        z[0, :, token] = 9.0
        for place, other in others:
            z[0, place] = torch.eye(4)[other] * 9
        return z

    drafts = [always(1, (3, 0)), always(1), always(2)]
    drafts[0][0, 0] = -torch.inf
    maps = [VocabMap.from_ids([0, 1, 2, 3], 4), VocabMap.from_ids([1, 3], 4), VocabMap.from_ids([0, 2], 4)]
    found = measure_chain(lambda _: always(1), lambda _, steps: drafts[:steps], [Tokens(ids)], maps, 3, 0.0)
    # Blocks begin at 1 and, two right drafts and one token later, at 4; never at 3, where the first draft is wrong.
    assert found[0] == pytest.approx([1, 1, 0])
    # Without 0 and 2 the best that is left: 1 at most places, and the lower of equals where all are the same.
    assert found[1] == pytest.approx([1, 1, 1])
    assert found[2] == [0, 0, 0]
    counted = Tokens(ids, torch.arange(8) > 4)  # only the chain that starts at place 4 has three tokens that count
    assert measure_chain(lambda _: always(1), lambda _, n: drafts[:n], [counted], maps, 3, 0.0)[0] == [1, 1, 0]
    short, cut = [Tokens(ids[:3])], [x[:, :3] for x in drafts]
    assert measure_chain(lambda _: always(1)[:, :3], lambda *_: cut, short, maps, 3) == []


def test_chains_are_blocks_of_greedy_decoding():
    """Walked block by block, on text that the target wrote."""
    pair, ids, steps = Eagle3Pair(target(), head()), text(4), 3
    for _ in range(60):
        ids = torch.cat([ids, pair.target(ids)[:, -1:].argmax(-1)], 1)
    [found] = measure_chain(
        pair.target, pair.chain, [Tokens(ids[0])], [VocabMap.from_ids(torch.arange(V), V)], steps, 0
    )
    right = [(z[0, :-1].argmax(-1) == pair.target(ids)[0, :-1].argmax(-1)).tolist() for z in pair.chain(ids, steps)]
    at, counts, blocks = 1, [0] * steps, 0
    while at + steps < ids.shape[1]:
        good = [right[i][at + i] for i in range(steps)]
        gained = good.index(False) if False in good else steps
        counts = [count + (i < gained) for i, count in enumerate(counts)]
        at, blocks = at + gained + 1, blocks + 1
    assert found == pytest.approx([count / blocks for count in counts])


def test_chains_at_a_temperature():
    """Of a drafter that is its target but for one token, by hand: every block is 1 + .8 + .64 tokens."""
    p, q = torch.tensor([0.8, 0.2]).log(), torch.tensor([1.0, 0.0]).log()
    texts, maps = [Tokens(torch.zeros(30, dtype=torch.int64))], [VocabMap.from_ids([0, 1], 2)]
    found = measure_chain(lambda _: p.expand(1, 30, 2), lambda *_: [q.expand(1, 30, 2)] * 2, texts, maps, 2)
    assert found[0] == pytest.approx([0.8, 0.64])
