"""The drafter's shape: the target's kind of block and its vocabulary, smaller in width and depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from remnant.errors import ConfigError
from remnant.speculative.fastdraft.hf import hf

__all__ = [
    "BLOCKS",
    "Shape",
    "block_of",
    "borrow_embedding",
    "candidates",
    "draft_config",
    "new_draft",
    "sized",
    "smallest",
]

BLOCKS = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds of block that a drafter takes over from its target; every other target gets a Llama drafter.

All of them can be loaded by transformers and by vLLM's `draft_model`, and none needs more than width and depth.
"""

_DEPTHS = (1, 2, 3, 4, 6, 8, 12)
_FULL = 0.8  # of the budget; below it a shape leaves unused what it may spend


@dataclass(frozen=True)
class Shape:
    """Sizes of a drafter; its head is tied to its embedding, since the vocabulary would else be paid for twice.

    Args:
        width: hidden size.
        depth: layers.
        heads: query heads.
        kv_heads: KV heads.
        head_dim: channels per head.
        mlp: inner width of the MLP.
        block: one of `BLOCKS`.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    block: str = "llama"

    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.width * (queries + keys)
        extra = {"qwen2": queries + 2 * keys, "qwen3": 2 * self.head_dim}.get(self.block, 0)
        return attention + extra + 3 * self.width * self.mlp + 2 * self.width

    def parameters(self, vocab: int) -> int:
        """Parameters in all, with a tied head."""
        return vocab * self.width + self.depth * self.layer_parameters() + self.width

    def to_dict(self) -> dict[str, Any]:
        """The shape as data."""
        return asdict(self)


def block_of(config: Any) -> str:
    """The kind of block that a drafter for this target has."""
    kind = str(getattr(config, "model_type", ""))
    return kind if kind in BLOCKS else "llama"


def _step(width: int) -> int:
    """Widths are multiples of it: hosts and kernels like round sizes."""
    return 16 if width < 128 else 32 if width < 256 else 64 if width < 1024 else 128


def sized(width: int, depth: int, vocab: int, budget: int, head_dim: int = 64, block: str = "llama") -> Shape | None:
    """The shape of this width and depth with the widest MLP that the budget allows, from 2 to 6 times the width.

    Args:
        width: hidden size.
        depth: layers.
        vocab: the target's `vocab_size`, padding included.
        budget: parameters, embedding included.
        head_dim: the target's; halved for drafters too narrow for four such heads.
        block: one of `BLOCKS`.

    Returns:
        None where the budget is too small for it.
    """
    while head_dim > 32 and width < 4 * head_dim:
        head_dim //= 2
    # As many as cover the width and divide it: transformers refuses others, even where the size of a head is given.
    heads = next(n for n in range(max(2, -(-width // head_dim)), width + 1) if width % n == 0)
    bare = Shape(width, depth, heads, max(1, heads // 2 if heads % 2 == 0 else 1), head_dim, 0, block)
    room = budget - bare.parameters(vocab)
    mlp = min(6 * width, room // (3 * width * depth) if room > 0 else 0)
    mlp -= mlp % _step(width)
    if mlp < 2 * width:
        return None
    return Shape(width, depth, heads, bare.kv_heads, head_dim, mlp, block)


def smallest(vocab: int, head_dim: int = 32, block: str = "llama") -> int:
    """Parameters of the smallest drafter for a vocabulary: 16 wide, one layer."""
    return Shape(16, 1, 2, 1, head_dim, 32, block).parameters(vocab)


def candidates(
    vocab: int, budget: int, head_dim: int = 64, block: str = "llama", depths: Sequence[int] = _DEPTHS
) -> list[Shape]:
    """Shapes that spend a budget of parameters, the widest first and among them the shallowest.

    Args:
        vocab: the target's `vocab_size`, padding included.
        budget: parameters, embedding included.
        head_dim: see `sized`.
        block: one of `BLOCKS`.
        depths: layers to try.

    Raises:
        ConfigError: the budget does not hold the vocabulary with one layer 16 wide.
    """
    least = smallest(vocab, 32, block)
    if budget < least:
        raise ConfigError(
            f"a budget of {budget} parameters for a vocabulary of {vocab} tokens",
            accepted=f"at least {least}",
            do="raise the budget: the embedding alone takes vocab x width",
        )
    found: list[Shape] = []
    width = 16
    while width * vocab < budget:
        made = [sized(width, depth, vocab, budget, head_dim, block) for depth in depths]
        found += [shape for shape in made if shape is not None]
        width += _step(width)
    spent = [shape for shape in found if shape.parameters(vocab) >= _FULL * budget]
    return sorted(spent or found, key=lambda s: (-s.width, s.depth))


def draft_config(target: Any, shape: Shape) -> Any:
    """The drafter's config: what the target's config says of tokens and positions, with the sizes of the shape.

    Args:
        target: the target's text config of transformers.
        shape: sizes.
    """
    same = str(getattr(target, "model_type", "")) == shape.block
    told: dict[str, Any] = dict(target.to_dict()) if same else {}
    # What describes single layers of the target, its files or its precision is not the drafter's.
    for name in ("layer_types", "max_window_layers", "_name_or_path", "architectures", "transformers_version", "dtype",
                 "quantization_config", "auto_map", "model_type"):  # fmt: skip
        told.pop(name, None)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "rope_parameters"):
        value = getattr(target, name, None)
        if value is not None and (name != "rope_parameters" or same):
            told[name] = value
    told.update(
        vocab_size=int(target.vocab_size),
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.mlp,
        tie_word_embeddings=True,
    )
    return hf().CONFIG_MAPPING[shape.block](**told)


def new_draft(config: Any, seed: int) -> Any:
    """An untrained drafter on the CPU, in float32, drawn from a seed of its own.

    Embeddings start larger than what the layers add to the stream, so that a token can still be told apart behind
    them: with one scale for all, a narrow model learns to copy late or never.
    """
    model: Any = hf().AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, _initial_std(name, config), generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return model


@torch.no_grad()
def borrow_embedding(draft: Any, target: Any, seed: int) -> None:
    """Begin with the target's embedding, projected to the drafter's width: which tokens are alike is known by then.

    The best `width` directions of the target's `[V, d]` matrix are kept, turned at random so that no channel carries
    more than another, and brought to the scale that the drafter's embedding had. Nothing happens where the target is
    narrower than the drafter.

    Args:
        draft: an untrained drafter, changed in place.
        target: the target.
        seed: of the turn.

    Source: none for FastDraft, which begins at random.
    """
    mine, whole = draft.get_input_embeddings().weight, target.get_input_embeddings().weight.detach().float()
    width = mine.shape[1]
    if whole.shape[0] != mine.shape[0] or whole.shape[1] < width:
        return
    linalg: Any = torch.linalg
    # Through the d x d Gram matrix: the singular vectors of a V x d one would cost V more memory.
    directions = linalg.eigh(whole.T @ whole).eigenvectors[:, -width:]
    turn = linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    made = (whole @ directions).to(mine.device) @ turn.to(mine.device)
    mine.copy_(made * (mine.std() / made.std().clamp(min=1e-12)))


def _initial_std(name: str, config: Any) -> float:
    if "embed" in name:
        return min(0.2, (config.hidden_size**-0.5))
    inward = config.hidden_size**-0.5
    return inward / (8 * config.num_hidden_layers**0.5) if "o_proj" in name or "down_proj" in name else inward
