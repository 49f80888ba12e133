"""Gates: bounds, the trainable twin, and files that tell what they are for."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from remnant.errors import ConfigError, ShapeError
from remnant.kv.gates import Gates, GateShape, RetentionGate

SHAPE = GateShape(layers=3, heads=2, key_dim=8, value_dim=4, hidden=5)


def kv(s: int = 7, b: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(b, 2, s, 8, generator=rng), torch.randn(b, 2, s, 4, generator=rng)


def gates(seed: int = 0, bias: float = 10.0) -> Gates:
    return RetentionGate(SHAPE, bias, seed).export({"steps": 3})


def test_starts_as_a_full_cache():
    log_beta = gates().log_beta(0, *kv())
    assert log_beta.dtype == torch.float32
    assert (log_beta < 0).all()
    assert (log_beta > -1e-3).all()


def test_by_hand():
    one = torch.ones(1, 1, 1, 2)
    plain = Gates(one, torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([[-1.0]]), key_dim=1)
    # Both channels have unit size after scaling: silu(1 + 1) - 1, then log sigmoid.
    logit = torch.tensor(2.0).sigmoid() * 2 - 1
    got = plain.log_beta(0, torch.full((1, 1, 1, 1), 30.0), torch.full((1, 1, 1, 1), 0.5))
    torch.testing.assert_close(got, logit.sigmoid().log().view(1, 1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [40.0, -200.0])
def test_extremes_are_finite(bias: float):
    log_beta = gates(bias=bias).log_beta(1, *kv())
    assert torch.isfinite(log_beta).all()
    assert (log_beta <= 0).all()


def test_twin_and_dtype():
    twin = RetentionGate(SHAPE, seed=3)
    k, v = kv()
    torch.testing.assert_close(twin(2, k, v), twin.export().log_beta(2, k, v))
    torch.testing.assert_close(RetentionGate.of(twin.export())(2, k, v), twin(2, k, v))
    half = twin.export().log_beta(2, k.bfloat16(), v.bfloat16())
    assert half.dtype == torch.float32


def test_magnitude_does_not_matter_but_heads_and_layers_do():
    g, (k, v) = gates(), kv()
    torch.testing.assert_close(g.log_beta(0, k * 50, v * 0.1), g.log_beta(0, k, v), atol=1e-6, rtol=1e-2)
    assert not torch.equal(g.log_beta(0, k, v), g.log_beta(1, k, v))
    swapped = g.log_beta(0, k.flip(1), v.flip(1)).flip(1)
    assert not torch.equal(swapped, g.log_beta(0, k, v))


def test_seed_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    RetentionGate(SHAPE, seed=9)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("s", [0, 1])
def test_short(s: int):
    assert gates().log_beta(0, *kv(s)).shape == (2, 2, s)


def test_long_inputs_in_chunks(monkeypatch: pytest.MonkeyPatch):
    whole = gates().log_beta(0, *kv(11))
    monkeypatch.setattr(import_module("remnant_kernels.retention_gate.fast"), "_CHUNK", 4)
    torch.testing.assert_close(gates().log_beta(0, *kv(11)), whole)


def test_file_round_trip(tmp_path: Path):
    path = tmp_path / "new" / "gates.safetensors"
    g = gates()
    g.save(path)
    back = Gates.load(path)
    assert back.shape == SHAPE
    assert back.provenance == {"steps": 3}
    assert all(torch.equal(a, b) for a, b in zip(back.tensors().values(), g.tensors().values(), strict=True))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_wrong_model_names_both_shapes():
    with pytest.raises(ConfigError, match=r"3 layers, 2 heads, keys of 8, values of 4.*4 layers, 2 heads"):
        gates().check(4, 2, 8, 4)
    gates().check(3, 2, 8, 4)


def test_wrong_tensors():
    with pytest.raises(ShapeError, match=r"\[2, 2, 7, 4\]"):
        gates().log_beta(0, kv()[1], kv()[1])
    with pytest.raises(ShapeError, match="bias"):
        Gates(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1), 2)
    with pytest.raises(ShapeError, match="key_dim 4"):
        Gates(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2), 4)


def test_bad_files(tmp_path: Path):
    path = tmp_path / "g.safetensors"
    with pytest.raises(ConfigError, match="train-gates"):
        Gates.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be read"):
        Gates.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="format None with tensors x; accepted: format 1"):
        Gates.load(path)
    tensors = gates().tensors()
    about = {"format": 1, **vars(SHAPE)}
    for change, message in (
        ({"layers": 9}, "says 9 layers"),
        ({"hidden": None}, "damaged"),
        ({"format": 2}, "format 2"),
    ):
        save_file(tensors, path, metadata={"remnant_gates": json.dumps({**about, **change})})
        with pytest.raises(ConfigError, match=message):
            Gates.load(path)
