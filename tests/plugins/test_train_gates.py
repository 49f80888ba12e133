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
from remnant_hf import train_gates as module
from remnant_hf.train_gates import GateCache, Settings, new_gate, text_batches, train_gates

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
    module.install()
    cache = GateCache(model.config, gate)
    gated = model(input_ids=ids, past_key_values=cache).logits
    torch.testing.assert_close(gated, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    assert [x.shape for x in cache.log_betas()] == [(2, 2, 24)] * 2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_gates_reach_the_attention(model: Any, batches: Any, implementation: str):
    model.set_attn_implementation(implementation)
    module.install()
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
    gates = train_gates(model, batches, None, [4, 8], 12, replace(FAST, form=form), lambda *a: losses.append(a[2]))
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.05
    assert losses[-1]["capacity"] < losses[0]["capacity"]
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert gates.provenance["budgets"] == [4, 8]
    assert gates.provenance["last"] == losses[-1]


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
    module.install()
    gated = model(input_ids=ids, past_key_values=GateCache(config, gate)).logits
    torch.testing.assert_close(gated, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)


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
    draw = module.task_batches(128, 4)
    first, second = draw(0), draw(1)
    assert first.ids.shape == first.labels.shape == first.weights.shape == (4, 128)
    assert second.ids.shape == (8, 64)
    assert torch.equal(first.ids, draw(0).ids)
    assert ((first.weights > 0) == (first.labels != module.IGNORE)).all()
    assert first.weights.sum() == pytest.approx(4.0)


def test_command(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def tokenizer(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 32 for c in text]}

    monkeypatch.setattr(module, "_load", lambda _: (model, tokenizer))
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
