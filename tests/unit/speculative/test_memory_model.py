"""Bytes of speculative decoding: the golden values, every part by hand, every kind of configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.speculative.memory_model import MemoryModel
from remnant.speculative.sizes import read_sizes

LLAMA2_7B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}
LLAMA2_70B = LLAMA2_7B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
}
TINY: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "vocab_size": 10,
    "torch_dtype": "float32",
}
SMALL = TINY | {"hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1}
PARTS = ["weights_target", "weights_draft", "kv", "logits", "mask", "activations", "draft", "slack"]


def test_kv_per_token_of_known_models():
    assert MemoryModel(LLAMA2_7B, None, "float16").kv_per_token == 512 * 1024
    assert MemoryModel(LLAMA2_70B, None, "float16").kv_per_token == 320 * 1024


@pytest.mark.parametrize(("vocab", "expected"), [(32_000, 8_192_000), (128_256, 32_833_536)])
def test_logits_of_64_nodes(vocab: int, expected: int):
    model = MemoryModel(LLAMA2_7B | {"vocab_size": vocab}, None, "float16")
    assert model.bytes(1, 1024, 64, lazy_logits=False)["logits"] == expected
    assert model.bytes(1, 1024, 64)["logits"] == 2 * vocab * 4 + 64 * 4


def test_every_part_by_hand():
    model = MemoryModel(TINY, SMALL, "float32", target_weights=10_000, draft_weights=1_000, slack=7)
    target_kv, draft_kv = 2 * 3 * 1 * 4 * 4, 2 * 1 * 1 * 2 * 4
    got = model.bytes(2, 100, 5, lazy_logits=False, depth=3, top_k=2)
    assert got == {
        "weights_target": 10_000,
        "weights_draft": 1_000,
        "kv": 2 * (target_kv + draft_kv) * 105,
        "logits": 2 * 5 * 10 * 4,
        "mask": 2 * 5 * 105,
        "activations": 2 * 5 * max(4 * 12, 3 * 8) * 4,
        "draft": 2 * 2 * 3 * (4 * 4 + draft_kv),
        "slack": 7,
        "total": sum(got[name] for name in PARTS),
    }


def test_options_change_their_part_alone():
    plain = MemoryModel(TINY, SMALL)
    base = plain.bytes(1, 100, 4)

    def changed(**options: Any) -> dict[str, int]:
        other = MemoryModel(TINY, SMALL, **options).bytes(1, 100, 4)
        return {name: other[name] - base[name] for name in PARTS if other[name] != base[name]}

    assert changed(dense_mask=False) == {"mask": 4 * 4 - 4 * 104}
    assert changed(sampling=True) == {"draft": 3 * 10 * 4}
    assert changed(kv_budget=40) == {"kv": -60 * 96, "mask": -60 * 4}
    reading = 16 * (4 * 12 + 2 * 8) * 4 + 16 * 56  # activations and mask of a chunk, over 40 tokens kept and 16 new
    spare = (2 * 10 * 4 + 4 * 4) + 4 * 60 + 3 * (4 * 4 + 16) + 4 * (96 + 16)  # what only a block of 4 needs
    more = {"activations": reading - spare - 4 * 4 * 12 * 4}
    assert changed(kv_budget=40, chunk=16) == {"kv": -44 * 96, "mask": -44 * 4, **more}
    assert changed(chunk=2) == {}
    whole = MemoryModel(TINY, SMALL, chunk=100).bytes(1, 100, 1)
    assert whole["activations"] == 100 * (4 * 12 + 2 * 8) * 4 - 10 * 4 - 101 - (96 + 16)
    assert changed(draft_context=30) == {"kv": -70 * 16}
    assert changed(slack=9) == {"slack": 9}
    attention = 4 * 3 * 8 * 4 + 104 * (2 * 4 * 4 * 2 + 4 * 4)  # one row, two query heads per KV head, mask as numbers
    kernels = 2 * 10 * 4 + 4 * 4  # lazily: two rows of logits, and a probability per node
    more = {"logits": (1 + 4) * 10 * 4 - kernels, "activations": attention - 4 * 4 * 12 * 4}
    assert changed(host="engine") == more  # one row of logits, and what a decision works with
    assert changed(host="transformers") == more | {"logits": 4 * 2 * 10 * 4 - kernels}  # it has no lazy logits
    ours, stock = (MemoryModel(TINY, host=host).bytes(3, 1000, 2) for host in ("engine", "transformers"))
    assert stock["activations"] - ours["activations"] == 2 * 1002 * (64 + 8)


def test_lazy_logits_of_our_engine():
    """A row of logits per row, and one decision at a time, in float64 where it is a tree's; never more than eager."""
    model, row = MemoryModel(TINY, host="engine"), 10 * 4
    assert model.bytes(3, 100, 16)["logits"] == (3 + 4) * row
    assert model.bytes(3, 100, 16, depth=3, top_k=2)["logits"] == (3 + 9) * row
    assert model.bytes(3, 100, 16, lazy_logits=False)["logits"] == 3 * 16 * 2 * row
    assert MemoryModel(TINY, host="engine", greedy=True).bytes(3, 100, 16, depth=3, top_k=2)["logits"] == 3 * row
    assert model.bytes(1, 100, 2)["logits"] == model.bytes(1, 100, 2, lazy_logits=False)["logits"] == 4 * row


def test_without_a_drafter_nothing_of_it_is_counted():
    for alone in (MemoryModel(TINY), MemoryModel(TINY, "lookup"), MemoryModel(TINY, SMALL).without_drafter()):
        got = alone.bytes(1, 100, 4)
        assert (got["weights_draft"], got["draft"], got["kv"]) == (0, 0, 96 * 104)
    assert MemoryModel(TINY, SMALL).draft is not None


def test_a_sliding_layer_holds_no_more_than_its_window():
    model = MemoryModel(TINY | {"layer_types": ["sliding_attention"] * 2 + ["full_attention"], "sliding_window": 20})
    assert model.bytes(1, 100, 4)["kv"] == 2 * 32 * 24 + 32 * 104


def test_configurations_of_every_kind_say_the_same(tmp_path: Path):
    transformers = pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA2_7B))
    object_ = transformers.LlamaConfig(**{k: v for k, v in LLAMA2_7B.items() if k != "torch_dtype"}, dtype="float16")
    found = [MemoryModel(given).bytes(1, 64, 8) for given in (LLAMA2_7B, tmp_path, str(tmp_path), object_)]
    assert found == [found[0]] * 4
    assert found[0]["weights_target"] == 2 * 6_738_415_616  # parameters of Llama-2-7B


def test_a_reduced_head_is_counted_as_small_as_it_is():
    whole, reduced = read_sizes(TINY), read_sizes(TINY | {"draft_vocab_size": 4})
    assert whole.weights - reduced.weights == (10 - 4) * 8 * 4


def test_longest_is_the_last_length_that_fits():
    model = MemoryModel(TINY, SMALL)
    budget = model.total(2, 57, 4)
    assert model.longest(budget, 2, 4, 1000) == 57
    assert model.longest(budget - 1, 2, 4, 1000) == 56
    assert model.longest(budget, 2, 4, 40) == 40
    assert model.longest(0, 2, 4, 40) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4096), st.integers(1, 64), st.booleans())
def test_parts_are_named_sum_up_and_grow(rows: int, length: int, n: int, lazy: bool):
    model = MemoryModel(TINY, SMALL, slack=3)
    got = model.bytes(rows, length, n, lazy)
    assert list(got) == [*PARTS, "total"]
    assert got["total"] == sum(got[name] for name in PARTS)
    for more in ((rows + 1, length, n), (rows, length + 1, n), (rows, length, n + 1)):
        assert model.total(*more, lazy) > got["total"]
    assert model.total(rows, length, n, True) <= model.total(rows, length, n, False)


@pytest.mark.parametrize(
    ("draft", "options", "message"),
    [
        (SMALL | {"vocab_size": 11}, {}, "11 token ids and the target 10"),
        (TINY | {"num_hidden_layers": 9}, {}, "larger than its target"),
        (3, {}, "configuration of type int"),
        ("/nowhere/at/all", {}, "no such folder"),
        (SMALL, {"dtype": "int8"}, "dtype 'int8'"),
        (SMALL, {"slack": -1}, "slack=-1"),
        (SMALL, {"host": "vllm"}, "unknown host"),
        (SMALL, {"kv_budget": 0}, "kv_budget=0"),
        ({"hidden_size": 8}, {}, "has no num_hidden_layers"),
    ],
)
def test_what_does_not_fit_together_is_refused(draft: Any, options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        MemoryModel(TINY, draft, **options)


def test_a_larger_drafter_may_be_wanted():
    assert MemoryModel(TINY, TINY | {"num_hidden_layers": 9}, allow_larger=True).draft is not None


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1.5, 1, 1), (1, float("nan"), 1), ("1", 1, 1)])
def test_counts_below_one_are_refused(numbers: tuple[Any, Any, Any]):
    with pytest.raises(ConfigError, match="at least 1"):
        MemoryModel(TINY).bytes(*numbers)
