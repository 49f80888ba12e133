"""Training gates on a tiny random Llama: it learns, the model stays, and a resumed run equals an unbroken one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra hf")

from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from remnant.cli import app, main
from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv import KVView, get_policy
from remnant.kv.gates import Gates, RetentionGate
from remnant_hf import gate_run
from remnant_hf.bridge import install
from remnant_hf.gate_data import IGNORE, GateBatch, opening, task_batches, text_batches
from remnant_hf.gate_student import Compaction, GateCache, new_gate
from remnant_hf.train_gates import Settings, train_gates

FAST = Settings(lr=3e-2, warmup=2, save_every=2)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def batches() -> Any:
    return text_batches(torch.randint(0, 32, (400,), generator=torch.Generator().manual_seed(0)).tolist(), 24, 2)


def test_new_gate_fits_and_starts_as_the_model_itself(model: Any, batches: Any):
    gate, ids = new_gate(model, hidden=8, bias=30.0), batches(0).ids
    assert str(gate.shape) == "2 layers, 2 heads, keys of 8, values of 8"
    install()
    cache = GateCache(model.config, gate)
    gated = model(input_ids=ids, past_key_values=cache).logits
    torch.testing.assert_close(gated, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    assert [x.shape for x in cache.log_betas()] == [(2, 2, 24)] * 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gates_reach_the_attention(model: Any, batches: Any, implementation: str):
    model.set_attn_implementation(implementation)
    install()
    ids = batches(0).ids
    cache = GateCache(model.config, new_gate(model, bias=-30.0))
    gated = model(input_ids=ids, past_key_values=cache).logits
    # Every token sees only itself, so the first one cannot matter to the others.
    alone = torch.cat([ids[:, -1:], ids[:, 1:]], 1)
    again = model(input_ids=alone, past_key_values=GateCache(model.config, new_gate(model, bias=-30.0))).logits
    torch.testing.assert_close(gated[:, 1:], again[:, 1:])


@pytest.mark.parametrize("form", ["additive", "multiplicative"])
def test_loss_falls_and_the_model_stays(model: Any, batches: Any, form: Any):
    before = {n: p.clone() for n, p in model.state_dict().items()}
    model.train()
    next(model.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    losses: list[dict[str, float]] = []
    settings = replace(FAST, form=form, compact_every=0)
    gates = train_gates(model, batches, None, [4, 8], 12, settings, lambda *a: losses.append(a[2]))
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.05
    assert losses[-1]["capacity"] < losses[0]["capacity"]
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert gates.provenance["budgets"] == [4, 8]
    assert gates.provenance["last"] == losses[-1]


def test_every_second_step_is_a_compaction(model: Any, batches: Any):
    losses: list[dict[str, float]] = []
    gate = new_gate(model)
    before = {n: p.clone() for n, p in gate.state_dict().items()}
    train_gates(model, batches, gate, [2, 4], 4, FAST, lambda *a: losses.append(a[2]))
    assert ["capacity" in each for each in losses] == [True, False, True, False]
    assert all(not torch.equal(p, before[n]) for n, p in gate.state_dict().items())


def test_a_compaction_leaves_what_came_before_the_cut(model: Any, batches: Any):
    install()
    ids, gate = batches(0).ids, new_gate(model, bias=0.0)
    stock = model(input_ids=ids).logits
    cache = GateCache(model.config, gate, compaction=Compaction(16, 3))
    student = model(input_ids=ids, past_key_values=cache).logits
    torch.testing.assert_close(student[:, :16], stock[:, :16], atol=1e-5, rtol=1e-4)
    assert (student[:, 16:] - stock[:, 16:]).abs().max() > 1e-4


def test_resumed_equals_unbroken(model: Any, batches: Any, tmp_path: Path):
    whole = train_gates(model, batches, None, 4, 6, FAST)
    train_gates(model, batches, None, 4, 6, FAST, folder=tmp_path, stop_after=3)
    steps: list[int] = []
    resumed = train_gates(model, batches, None, 4, 6, FAST, lambda *a: steps.append(a[0]), folder=tmp_path, resume=True)
    assert steps == [4, 5, 6]
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name])
    with pytest.raises(ConfigError, match="another run"):
        train_gates(model, batches, None, 5, 6, FAST, folder=tmp_path, resume=True)


def test_gates_serve_the_policy(model: Any, batches: Any, tmp_path: Path):
    path = tmp_path / "g.safetensors"
    train_gates(model, batches, None, 4, 2, FAST).save(path)
    policy, cache = get_policy("trimkv", gates=str(path)), DynamicCache(config=model.config)
    model(input_ids=batches(0).ids, past_key_values=cache)
    layers: list[Any] = cache.layers
    for i, layer in enumerate(layers):
        positions = torch.arange(24).expand(2, 2, 24)
        seen = KVView(layer.keys, layer.values, positions, 24, layer=i, layers=2)
        plan = policy.plan(replace(seen, side=policy.append(seen)), 6)
        assert plan.lengths is not None
        assert plan.lengths.sum(-1).tolist() == [12, 12]


def test_sliding_layers_are_left_alone():
    config = Gemma3TextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    ids = torch.randint(1, 32, (2, 20))
    gate = new_gate(model, bias=30.0)
    assert gate.shape.layers == 1
    install()
    gated = model(input_ids=ids, past_key_values=GateCache(config, gate)).logits
    torch.testing.assert_close(gated, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


def test_latent_attention_has_one_gate_for_all_heads(lab: Any, batches: Any):
    model = lab.model("dsv3")
    ids = batches(0).ids
    gate = new_gate(model, bias=30.0)
    assert gate.shape.heads == 1
    install()
    gated = model(input_ids=ids, past_key_values=GateCache(model.config, gate)).logits
    torch.testing.assert_close(gated, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    gates = train_gates(model, batches, gate, [4, 8], 2, FAST)
    lab.go(model, lab.ids(40), lab.cache(model, "trimkv", 12, gates=gates), 4)


def test_attention_out_of_reach(model: Any):
    cache = GateCache(model.config, new_gate(model))
    with pytest.raises(UnsupportedPolicy, match="2 of 2"):
        cache.log_betas()


def test_bad_arguments(model: Any, batches: Any):
    with pytest.raises(ConfigError, match="steps 0"):
        train_gates(model, batches, None, 4, 0)
    with pytest.raises(ConfigError, match="budgets"):
        train_gates(model, batches, None, [], 3)
    with pytest.raises(ConfigError, match="hold 5 tokens"):
        text_batches(range(5), 5, 1)


@pytest.mark.slow
def test_task_batches_ask_after_the_facts():
    draw = task_batches(128, 4)
    first, second = draw(0), draw(1)
    assert first.ids.shape == first.labels.shape == first.weights.shape == (4, 128)
    assert draw(2).ids.shape == (8, 64)
    assert second.ids.shape == (4, 128)
    assert torch.equal(first.ids, draw(0).ids)
    assert ((first.weights > 0) == (first.labels != IGNORE)).all()
    assert first.real is not None
    assert (first.weights[~first.real] == 0).all()
    assert first.weights.sum() == pytest.approx(4.0)


class Tokenizer:
    """Letters, with `<bos>` 31 before and `<eos>` 30 behind every text."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        letters = [ord(c) % 30 for c in text]
        return {"input_ids": [31, *letters, 30] if add_special_tokens else letters}


def test_windows_of_text_open_like_texts():
    first = opening(Tokenizer())
    assert first == [31]
    batch = text_batches(range(30), 8, 3, first=first)(0)
    assert batch.ids.shape == batch.labels.shape == (3, 8)
    assert (batch.ids[:, 0] == 31).all()
    assert torch.equal(batch.ids[:, 1:], batch.labels[:, :-1])
    assert not (batch.labels == 31).any()


def test_padding_is_not_held(model: Any, batches: Any):
    """Rows that end early lose the same capacity with padding behind them as without."""
    whole = batches(0)
    weights = whole.weights.clone()
    weights[:, 12:] = 0
    real = torch.arange(24).expand(2, 24) < 12
    padded = GateBatch(whole.ids, whole.labels, weights, real)
    short = GateBatch(whole.ids[:, :12], whole.labels[:, :12], weights[:, :12])
    found: list[dict[str, float]] = []
    for batch in (short, padded):
        train_gates(model, lambda _, batch=batch: batch, None, 2, 1, FAST, lambda *a: found.append(a[2]))
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


def test_command(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(gate_run, "_load", lambda _: (model, Tokenizer()))
    data, out = tmp_path / "text.txt", tmp_path / "g.safetensors"
    data.write_text("All that is gold does not glitter. " * 20)
    arguments = ["train-gates", "m", "--data", str(data), "--budget", "8,16", "--steps", "2", "--length", "96"]
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    printed, _ = capsys.readouterr()
    assert '"script": "remnant train-gates"' in printed
    assert Gates.load(out).provenance["budgets"] == [8, 16]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.json", "g.safetensors", "text.txt"]
    assert isinstance(RetentionGate.of(Gates.load(out)), RetentionGate)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "--budget", "many"], "64,128,256"),
        (["m", "--share", "all"], "layer, head"),
        (["m", "--data", "/no/such/file"], "does not exist"),
        (["/no/such/model", "--data", __file__], "cannot be loaded"),
        (["/no/such/model", "--data", "testbed"], "data"),
    ],
)
def test_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train-gates", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert app.registered_commands
