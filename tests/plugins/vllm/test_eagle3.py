"""Our EAGLE-3 forward against stock vLLM's: the logits of every draft of every step of a run, all of them equal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from remnant.cli import main

pytestmark = pytest.mark.vllm

V, NEW, STEPS = 512, 30, 3


@dataclass
class Drafts:
    """What the engine's drafter did, proposal by proposal."""

    places: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # last token read, and where it stands
    logits: list[torch.Tensor] = field(default_factory=list[torch.Tensor])  # [V] per draft
    tokens: list[list[int]] = field(default_factory=list[list[int]])

    def watch(self, drafter: Any) -> None:
        propose, compute = drafter.propose, drafter.model.compute_logits

        def proposing(**given: Any) -> Any:
            at = given["token_indices_to_sample"]
            at = -1 if at is None else int(at[0])
            self.places.append((int(given["next_token_ids"][0]), int(given["target_positions"][at]) + 1))
            self.tokens.append(propose(**given)[0].tolist())
            return torch.tensor([self.tokens[-1]])

        def computing(hidden: torch.Tensor) -> torch.Tensor:
            self.logits.append(compute(hidden)[0])
            return compute(hidden)

        drafter.propose, drafter.model.compute_logits = proposing, computing


def ours(target: Path, drafter: Path) -> Any:
    from transformers import AutoModelForCausalLM

    from remnant.speculative.eagle3 import load_eagle3
    from remnant.speculative.eagle3_pair import Eagle3Pair

    model: Any = AutoModelForCausalLM
    return Eagle3Pair(model.from_pretrained(target, dtype=torch.float32).eval(), load_eagle3(drafter))


def eagle3(folder: Path, own_embedding: bool = False, **changed: Any) -> Path:
    """A random drafter for the tiny target; no norm is all ones, so that each has to be in its place."""
    from remnant.speculative.eagle3 import Eagle3
    from remnant.speculative.eagle3_shape import Eagle3Shape

    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": 128, "vocab_size": V,
        "num_hidden_layers": 1, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "draft_vocab_size": V, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "hidden_act": "silu",
        "tie_word_embeddings": False, "torch_dtype": "float32", "eagle_aux_hidden_state_layer_ids": [0, 1],
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 1]}, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    config |= changed
    source = torch.Generator().manual_seed(1)
    model = Eagle3(Eagle3Shape.from_config(config), 2, own_embedding=own_embedding)
    weights = {name: torch.randn(x.shape, generator=source) * 0.1 for name, x in model.state_dict().items()}
    weights = {name: x + 1 if "norm" in name else x for name, x in weights.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


CASES = {
    "plain": {},
    "trimmed": {"k": 96},
    "layers": {
        "eagle_aux_hidden_state_layer_ids": [1, 0],
        "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
    },
    "residual": {"norm_before_residual": True},
    "output": {"norm_output": True, "rms_norm_eps": 1e-3},
    "embedding": {"own_embedding": True},
}


@pytest.mark.parametrize("case", CASES)
def test_every_draft_has_vllms_logits(engine: Any, checkpoints: Any, prompts: Any, tmp_path: Path, case: str):
    target, options = checkpoints("llama"), dict(CASES[case])
    k, drafter = options.pop("k", 0), eagle3(tmp_path / "eagle", **options)
    [prompt] = prompts(33)
    if k:
        tokens = tmp_path / "tokens.jsonl"
        tokens.write_text(json.dumps(list(range(0, V, 3))))
        written = ["--tokens", str(tokens), "--k", str(k), "--out", str(tmp_path / "small"), "--no-chart", "--json"]
        assert main(["trim-vocab", str(drafter), *written]) == 0
        drafter = tmp_path / "small"
    running = engine(
        target,
        blocks=300,
        speculative_config={"method": "eagle3", "model": str(drafter), "num_speculative_tokens": STEPS},
    )
    seen = Drafts()
    seen.watch(running.runner.drafter)
    [answer] = running.run([prompt], NEW)
    text, pair = [*prompt, *answer], ours(target, drafter)
    assert len(seen.places) > NEW // (STEPS + 1)
    for i, (last, place) in enumerate(seen.places):
        if place >= len(text):
            continue  # what the engine drafts after its last token
        assert text[place] == last
        ids = torch.tensor([[*text[: place + 1], *seen.tokens[i]]])
        drafted = pair.chain(ids, STEPS)
        for step, logits in enumerate(drafted):
            found, wanted = logits[0, place + step], seen.logits[i * STEPS + step]
            assert torch.equal(torch.isinf(found), torch.isinf(wanted))
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
            assert int(found.argmax()) == seen.tokens[i][step]
    if k:
        assert int(torch.isinf(seen.logits[0]).sum()) == V - k
