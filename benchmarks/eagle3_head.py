"""A real EAGLE-3 head for the testbed, trained here in minutes on a CPU: for the benchmark, not for use."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from remnant.speculative.eagle3 import Eagle3
from remnant.speculative.eagle3_shape import Eagle3Shape

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1, "hidden_size": 128,
    "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
    "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
}  # fmt: skip
"""Three states as the paper has them, low, middle and high. Without the list, servers would take the states
`(2, L // 2, L - 3)`, which of four layers are two."""
RATE = 5e-3
DECAY = 0.8  # weight of a later draft, over that of the one before


def new_head(target: Any) -> tuple[Eagle3, dict[str, Any]]:
    """An untrained head, with the target's own as a beginning, and its configuration."""
    size = int(target.config.vocab_size)
    marks = {key: getattr(target.config, key) for key in ("bos_token_id", "eos_token_id")}
    config = CONFIG | marks | {"vocab_size": size, "draft_vocab_size": size}
    head = Eagle3(Eagle3Shape.from_config(config))
    with torch.no_grad():
        for x in head.parameters():
            if x.dim() == 2:
                x.normal_(0.0, 0.5 * x.shape[1] ** -0.5)
        head.lm_head.weight.copy_(target.get_output_embeddings().weight)
        head.norm.weight.copy_(target.model.norm.weight)
    return head, config


def train(target: Any, texts: torch.Tensor, steps: int, drafts: int, seed: int, batch: int = 8) -> Eagle3:
    """Teach a head the target's distributions, over chains that it feeds itself, as EAGLE-3 is trained.

    Args:
        target: the model.
        texts: `[N, T]` ids, most of them written by the target.
        steps: of the optimiser.
        drafts: of a chain.
        seed: of the weights and the order of texts.
        batch: texts per step.

    Source: Li et al. 2025 (EAGLE-3), arXiv 2503.01840. Differs: a cross-entropy that fades with the place in the chain.
    """
    torch.manual_seed(seed)
    head, _ = new_head(target)
    layers = head.shape.layers_of(int(target.config.num_hidden_layers))
    optimizer = torch.optim.AdamW(head.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    r, losses = torch.Generator().manual_seed(seed), list[float]()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 40) * (1 - 0.95 * step / steps)
        ids = texts[torch.randint(len(texts), (batch,), generator=r)]
        with torch.no_grad():
            out = target(input_ids=ids, output_hidden_states=True, use_cache=False)
            p, states = torch.softmax(out.logits, -1), torch.cat([out.hidden_states[i] for i in layers], -1)
            embeds = target.get_input_embeddings()(ids)
        found = head(embeds, states, drafts)
        loss = torch.zeros(())
        for place, z in enumerate(found, 1):
            log_q = torch.log_softmax(z[:, place:], -1)
            loss = loss - DECAY ** (place - 1) * (p[:, place:] * log_q).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 20 == 0:
            print(f"\rtrained {step + 1} of {steps}, loss {sum(losses[-20:]) / 20:.3f}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return head.eval()


def save(head: Eagle3, config: dict[str, Any], folder: Path) -> Path:
    """Write a checkpoint as stock vLLM loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(head.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
