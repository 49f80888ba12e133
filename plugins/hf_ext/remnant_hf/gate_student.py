"""The student of gate training: a model whose cache fades keys, or treats them as a compaction would."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from remnant.errors import UnsupportedPolicy
from remnant.kv.gate_attention import Form, gated_attention, selected_attention
from remnant.kv.gate_training import Share, choice
from remnant.kv.gates import GateShape, RetentionGate
from remnant_hf.bridge import set_pending, tag

__all__ = ["Compaction", "GateCache", "GateLayer", "frozen", "new_gate"]


@dataclass(frozen=True)
class Compaction:
    """One compaction that the student goes through.

    Attributes:
        cut: tokens seen when it happens.
        tokens: budget per head.
        share: see `choice`.
        width: see `choice`.
    """

    cut: int
    tokens: int
    share: Share = "layer"
    width: float = 0.5


class GateLayer(DynamicLayer):
    """A layer of the student: it keeps everything, and the attention treats it as the gates say."""

    def __init__(self, gate: RetentionGate, row: int, index: int, form: Form, compaction: Compaction | None) -> None:
        """Serve row `row` of the gate in layer `index` of the model; without a compaction, keys fade."""
        super().__init__()
        self.gate, self.row, self.index = gate, row, index
        self.form: Form = form
        self.compaction = compaction
        self.log_beta: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep the keys, and mark them so that the attention comes back here."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        set_pending(self)
        return tag(keys, self), values

    def attend(
        self, inner: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """Attention under the gates instead of the model's own; `[B, S, N, Dv]`."""
        # The gates read what is stored: with latent attention (MLA) that is not what the attention reads.
        assert self.keys is not None
        assert self.values is not None
        self.log_beta = log_beta = self.gate(self.row, self.keys, self.values)
        mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4 else None
        facts = {"scale": kwargs.get("scaling"), "mask": mask}
        facts |= {"softcap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux")}
        if self.compaction is None:
            out = gated_attention(query, key, value, log_beta, form=self.form, **facts)
        else:
            c = self.compaction
            bias = choice(log_beta, c.cut, c.tokens, c.share, c.width)
            out = selected_attention(query, key, value, bias, c.cut, **facts)
        return out.transpose(1, 2).to(query.dtype), None


class GateCache(DynamicCache):
    """The student's cache: every full-attention layer of the model is a `GateLayer`."""

    def __init__(
        self, config: Any, gate: RetentionGate, form: Form = "additive", compaction: Compaction | None = None
    ) -> None:
        """Make one for a single forward pass."""
        super().__init__(config=config)
        self.gated: list[GateLayer] = []
        for i in _governed(self):
            self.gated.append(GateLayer(gate, len(self.gated), i, form, compaction))
            self.layers[i] = self.gated[-1]

    def log_betas(self) -> list[Tensor]:
        """`[B, H, S]` of every gated layer.

        Raises:
            UnsupportedPolicy: a layer's attention did not come through the bridge.
        """
        found = [layer.log_beta for layer in self.gated if layer.log_beta is not None]
        if len(found) < len(self.gated) or not found:
            missing = f"{len(self.gated) - len(found)} of {len(self.gated)} full-attention layers"
            raise UnsupportedPolicy(f"{missing} of this model do not use the attention interface of transformers")
        return found


def _governed(cache: DynamicCache) -> list[int]:
    """The layers that a policy governs: those with full attention."""
    return [i for i, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]


@contextmanager
def frozen(model: Any) -> Generator[None, None, None]:
    """The model in eval mode and without gradients of its own; as it was afterwards."""
    parameters = list(model.parameters())
    flags, training = [p.requires_grad for p in parameters], model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)


@torch.no_grad()
def new_gate(model: Any, hidden: int = 64, seed: int = 0, bias: float = 10.0) -> RetentionGate:
    """An untrained gate that fits a model; its shape is read from what two tokens leave in a cache.

    Raises:
        UnsupportedPolicy: the model has no full-attention layer, or its layers differ in shape.
    """
    cache = DynamicCache(config=model.config)
    with frozen(model):
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device), past_key_values=cache)
    layers: list[Any] = [cache.layers[i] for i in _governed(cache)]
    shapes = {(x.keys.shape[1], x.keys.shape[-1], x.values.shape[-1]) for x in layers}
    if len(shapes) != 1:
        found = ", ".join(map(str, sorted(shapes))) or "no full-attention layers"
        raise UnsupportedPolicy(f"gates need layers of one shape (heads, key, value); the model has {found}")
    heads, key_dim, value_dim = shapes.pop()
    return RetentionGate(GateShape(len(layers), heads, key_dim, value_dim, hidden), bias, seed).to(model.device)
