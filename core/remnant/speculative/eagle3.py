"""An EAGLE-3 drafter in plain torch: for measuring what it would propose and for training it, not for speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from remnant.errors import ConfigError, ShapeError
from remnant.lazy import needs
from remnant.speculative.eagle3_shape import Eagle3Shape
from remnant.speculative.vocab_checkpoint import Checkpoint, read_checkpoint
from remnant.speculative.vocab_map import VocabMap

__all__ = ["Eagle3", "load_eagle3"]

_TABLES = ("d2t", "t2d")


class Eagle3(nn.Module):
    """One layer that drafts from three states of the target and, from the second draft on, from its own.

    Parameters have the names that checkpoints give them.

    Args:
        shape: sizes and switches.
        states: how many of the target's states are laid side by side.
        kept: target ids of the head's rows; None where it has all of them.
        own_embedding: whether the drafter brings an embedding; else it uses its target's.

    Source: Li et al. 2025 (EAGLE-3), arXiv 2503.01840.
    """

    def __init__(
        self, shape: Eagle3Shape, states: int = 3, kept: VocabMap | None = None, own_embedding: bool = False
    ) -> None:
        """See the class."""
        super().__init__()
        self.shape, self.states, self.kept = shape, states, kept
        self.fc = nn.Linear(states * shape.target_hidden, shape.hidden, bias=False)
        self.midlayer = _Layer(shape)
        self.norm = nn.RMSNorm(shape.hidden, shape.eps)
        self.lm_head = nn.Linear(shape.hidden, shape.rows, bias=False)
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden) if own_embedding else None

    def forward(self, embeds: Tensor, states: Tensor, steps: int = 1) -> list[Tensor]:
        """What is drafted along a text: from every token on, a chain of drafts that all turn out right.

        The first draft pairs the target's states at a token with the token after it, and proposes the one after that.
        Later drafts of the same chain take the drafter's own state in their place. Their attention sees the target's
        states up to where the chain began and the chain's own drafts, since that is what a server's cache holds.

        Args:
            embeds: `[B, T, d]` embeddings of the text.
            states: `[B, T, states * target_hidden]` of the target at the same tokens.
            steps: drafts of a chain.

        Returns:
            A tensor per step, `[B, T, V]`: logits of the token after each, from a chain that began so many tokens
            before. Minus infinity for tokens outside of the kept ones, and where no chain can have begun.

        Raises:
            ShapeError: of another size than the drafter is made for.
        """
        self._check(embeds, states)
        hidden, past, found = self.fc(states), list[tuple[Tensor, Tensor]](), list[Tensor]()
        for step in range(1, steps + 1):
            rows = max(0, embeds.shape[1] - step)
            turn = self._rotary(embeds, step - 1, rows)
            hidden = self.midlayer(embeds[:, embeds.shape[1] - rows :], hidden[:, :rows], turn, past)
            normed = self.norm(hidden)
            found.append(self._logits(normed, embeds.shape[1] - rows))
            hidden = normed if self.shape.norm_output else hidden
        return found

    def _check(self, embeds: Tensor, states: Tensor) -> None:
        wide = self.states * self.shape.target_hidden
        if embeds.dim() != 3 or states.shape != (*embeds.shape[:2], wide) or embeds.shape[2] != self.shape.hidden:
            given = f"embeddings {tuple(embeds.shape)}, states {tuple(states.shape)}"
            raise ShapeError(given, accepted=f"[B, T, {self.shape.hidden}], [B, T, {wide}]")

    def _logits(self, normed: Tensor, before: int) -> Tensor:
        """Over the target's vocabulary, with rows before the first chain."""
        logits = self.lm_head(normed)
        logits = logits if self.kept is None else self.kept.scatter(logits)
        nothing = logits.new_full((logits.shape[0], before, logits.shape[2]), -torch.inf)
        return torch.cat([nothing, logits], 1)

    def _rotary(self, like: Tensor, start: int, rows: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[1, 1, rows, D]`."""
        places = torch.arange(start, start + rows, device=like.device)[None]
        cos, sin = _rotary_of(self.shape, like.device)(like, places)
        return cos[:, None], sin[:, None]


class _Layer(nn.Module):
    """Attention over a token's embedding beside its hidden state, and a feed-forward part."""

    def __init__(self, shape: Eagle3Shape) -> None:
        super().__init__()
        self.norm_before_residual = shape.norm_before_residual
        self.input_layernorm = nn.RMSNorm(shape.hidden, shape.eps)
        self.hidden_norm = nn.RMSNorm(shape.hidden, shape.eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, shape.eps)
        self.mlp = _Mlp(shape)

    def forward(
        self, embeds: Tensor, hidden: Tensor, turn: tuple[Tensor, Tensor], past: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        normed = self.hidden_norm(hidden)
        residual = normed if self.norm_before_residual else hidden
        residual = residual + self.self_attn(torch.cat([self.input_layernorm(embeds), normed], -1), turn, past)
        return residual + self.mlp(self.post_attention_layernorm(residual))


class _Attention(nn.Module):
    def __init__(self, shape: Eagle3Shape) -> None:
        super().__init__()
        self.head_dim, self.groups = shape.head_dim, shape.heads // shape.kv_heads
        self.q_proj = nn.Linear(2 * shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(2 * shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(2 * shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], past: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Attend to the first step up to the own row, and to the own row of every step since; adds to `past`."""
        rows = x.shape[1]
        q = _turned(self._heads(self.q_proj(x)), turn)
        k = _turned(self._heads(self.k_proj(x)), turn).repeat_interleave(self.groups, 1)
        past.append((k, self._heads(self.v_proj(x)).repeat_interleave(self.groups, 1)))
        held = [(k[:, :, :rows], v[:, :, :rows]) for k, v in past]
        later = torch.ones(rows, rows, dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ held[0][0].transpose(2, 3)).masked_fill(later, -torch.inf)
        own = [(q * k).sum(-1, keepdim=True) for k, _ in held[1:]]
        weights = torch.softmax(torch.cat([scores, *own], -1).float() * self.head_dim**-0.5, -1).to(x.dtype)
        mixed = weights[..., :rows] @ held[0][1]
        for i, (_, v) in enumerate(held[1:]):
            mixed = mixed + weights[..., rows + i : rows + i + 1] * v
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """`[B, T, H * D]` -> `[B, H, T, D]`."""
        return x.view(*x.shape[:2], x.shape[2] // self.head_dim, self.head_dim).transpose(1, 2)


class _Mlp(nn.Module):
    def __init__(self, shape: Eagle3Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def _turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding: channel i turns together with channel i + D / 2."""
    first, second = x.chunk(2, -1)
    return x * turn[0] + torch.cat([-second, first], -1) * turn[1]


def _rotary_of(shape: Eagle3Shape, device: torch.device) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Transformers' own, which knows every scaling; of its two spellings of settings the older works in both."""
    with needs("hf", wanted_by="an EAGLE-3 drafter"):
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    rope: dict[str, Any] = dict(shape.rope.get("rope_parameters") or shape.rope.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", shape.rope.get("rope_theta", 10000.0))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    config: Any = LlamaConfig
    scaling = {} if kind == "default" else {"rope_scaling": {"rope_type": kind, **rope}}
    heads = {"hidden_size": shape.hidden, "num_attention_heads": shape.heads, "head_dim": shape.head_dim}
    made: Any = LlamaRotaryEmbedding
    return made(config(**heads, rope_theta=theta, **scaling)).to(device)


def load_eagle3(given: str | Path, dtype: torch.dtype = torch.float32) -> Eagle3:
    """Load an EAGLE-3 drafter, trimmed or not.

    Args:
        given: its folder, or the id of one that is in the Hugging Face cache.
        dtype: of the weights.

    Raises:
        ConfigError: another kind of drafter; see `read_checkpoint` and `Eagle3Shape.from_config`; tensors that are
            missing, or that this forward has no place for.
        ShapeError: a tensor of another shape than the configuration says.
    """
    checkpoint = read_checkpoint(given)
    if checkpoint.kind != "eagle3":
        raise ConfigError(f"{checkpoint.folder.name}: a drafter of type {checkpoint.architecture}", accepted="EAGLE-3")
    shape, tensors = Eagle3Shape.from_config(checkpoint.config), _tensors(checkpoint)
    states, rest = divmod(tensors["fc.weight"].shape[-1] if "fc.weight" in tensors else 0, shape.target_hidden)
    if not states or rest:
        where = f"{checkpoint.folder.name}: fc.weight over {states * shape.target_hidden + rest} channels"
        raise ShapeError(where, accepted=f"a multiple of the target's {shape.target_hidden}")
    model = Eagle3(shape, states, checkpoint.kept, "embed_tokens.weight" in tensors)
    _confirm(checkpoint.folder.name, tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.to(dtype).eval()


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights; some training code counts the layer instead of naming it."""
    files = sorted({stored.file for stored in checkpoint.tensors.values()})
    found = {name: x for file in files for name, x in load_file(checkpoint.folder / file).items()}
    return {name.replace("layers.0.", "midlayer."): x for name, x in found.items() if name not in _TABLES}


def _confirm(folder: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for names, what in ((wanted.keys() - given.keys(), "without"), (given.keys() - wanted.keys(), "with")):
        if names:
            accepted = "the parts of one Llama layer, fc, norm and lm_head"
            raise ConfigError(f"{folder}: an EAGLE-3 drafter {what} {min(names)}", accepted=accepted)
    for name, x in given.items():
        if x.shape != wanted[name].shape:
            accepted = f"{list(wanted[name].shape)}, as its configuration says"
            raise ShapeError(f"{folder}: {name} of {list(x.shape)}", accepted=accepted)
