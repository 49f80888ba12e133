"""Configurations as the cost model reads them: complete, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kinetics import Group, read_shape

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 100,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def written(folder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_configuration_is_read(tmp_path: Path):
    shape = read_shape(written(tmp_path), name="tiny")
    assert shape.groups == (Group(3, 8, 2, 8, 8),)
    layer = 64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 128 + 2 * 64
    assert shape.parameters == 2 * 100 * 64 + 3 * layer + 64
    assert (shape.name, shape.source, shape.element, shape.weights) == ("tiny", "estimate", 2, 2 * shape.parameters)
    assert read_shape(str(tmp_path), kv_bytes=1).kv_per_token == shape.kv_per_token / 2
    assert read_shape(str(tmp_path), parameters=7).parameters == 7
    assert read_shape(str(tmp_path), dtype="float32").parameters == shape.parameters


def test_windows_and_experts_are_read(tmp_path: Path):
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    shape = read_shape(written(tmp_path, layer_types=kinds, sliding_window=32))
    assert set(shape.groups) == {Group(2, 8, 2, 8, 8, 32), Group(1, 8, 2, 8, 8)}
    plain = read_shape(written(tmp_path)).parameters
    mixed = {"num_local_experts": 8, "num_experts_per_tok": 1}
    shape = read_shape(written(tmp_path, **mixed))
    assert shape.parameters == plain + 3 * 64 * 8  # one expert, and the routers
    assert shape.weights == 2 * (shape.parameters + 3 * 7 * 3 * 64 * 128)
    for lacking in ({"num_experts_per_tok": None}, {"num_experts_per_tok": 9}, {"first_k_dense_replace": 1}):
        with pytest.raises(ConfigError, match="--parameters"):
            read_shape(written(tmp_path, **(mixed | lacking)))
    assert read_shape(written(tmp_path, **mixed, first_k_dense_replace=1), parameters=9).parameters == 9


@pytest.mark.parametrize("key", ["torch_dtype", "intermediate_size", "num_attention_heads", "vocab_size"])
def test_nothing_that_is_missing_is_guessed(tmp_path: Path, key: str):
    with pytest.raises(ConfigError):
        read_shape(written(tmp_path, **{key: None, "model_type": "unheard-of"}))


def test_layers_of_other_kinds_are_refused(tmp_path: Path):
    for changes in (
        {"layer_types": ["linear_attention", "full_attention", "full_attention"]},
        {"layer_types": ["chunked_attention"] * 3, "attention_chunk_size": 8},
        {"kv_lora_rank": 8},
    ):
        with pytest.raises(UnsupportedPolicy):
            read_shape(written(tmp_path, **changes))
