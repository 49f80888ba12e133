"""A model as the cost model sees it: parameters, heads and widths of its attention layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.serving.checkpoint import estimated_bytes, find_config, stored_bytes
from remnant.serving.model import BYTES, Model, read_model

__all__ = ["Group", "Shape", "read_shape"]

_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query", "n_head")
_QUERY_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_MIXED = ("first_k_dense_replace", "mlp_only_layers", "interleave_moe_layer_step", "moe_layers", "enable_moe_block")


@dataclass(frozen=True)
class Group:
    """Layers of one kind.

    Attributes:
        count: layers.
        heads: query heads.
        kv_heads: heads of keys and values.
        key_dim: channels of a key.
        value_dim: channels of a value.
        span: tokens of its sliding window; 0 sees all.
    """

    count: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    span: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.count, self.heads, self.kv_heads, self.key_dim, self.value_dim) < 1 or self.span < 0:
            raise ConfigError(f"layers {self}", accepted="counts of 1 or more, a window of 0 or more")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"{self.heads} query heads on {self.kv_heads} KV heads", accepted="a multiple of the KV heads"
            )

    @property
    def flops(self) -> int:
        """Operations of one query token per token that it sees, all these layers."""
        return 2 * self.count * self.heads * (self.key_dim + self.value_dim)

    @property
    def numbers(self) -> int:
        """Numbers in the keys and values of one token, all these layers."""
        return self.count * self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        name: for people.
        parameters: used for each token; of a mixture of experts, those of the chosen ones.
        groups: its attention layers.
        element: bytes per number of the KV cache.
        weights: bytes of all parameters.
        positions: longest text that it was made for, in tokens; 0 when unknown.
        source: where the parameters are from: `given`, `weight files` or `estimate`.
    """

    name: str
    parameters: float
    groups: tuple[Group, ...]
    element: float = 2.0
    weights: float = 0.0
    positions: int = 0
    source: str = "given"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (math.isfinite(self.parameters) and self.parameters > 0):
            raise ConfigError(f"{self.name}: {self.parameters} parameters", accepted="more than 0")
        if not (math.isfinite(self.element) and self.element > 0):
            raise ConfigError(f"{self.name}: {self.element} bytes per cached number", accepted="more than 0")
        if not self.groups:
            raise ConfigError(f"{self.name} has no attention layers", accepted="a decoder with attention")

    @classmethod
    def uniform(
        cls, name: str, *, parameters: float, layers: int, heads: int, kv_heads: int, dim: int, element: float = 2.0
    ) -> Shape:
        """A dense model whose layers are all alike and see everything; its weights are stored as wide as its cache."""
        group = Group(layers, heads, kv_heads, dim, dim)
        return cls(name, parameters, (group,), element, parameters * element)

    @property
    def kv_per_token(self) -> float:
        """Bytes of keys and values per token."""
        return self.element * sum(group.numbers for group in self.groups)


def read_shape(
    given: str,
    *,
    parameters: float | None = None,
    dtype: str = "auto",
    kv_bytes: float | None = None,
    name: str | None = None,
) -> Shape:
    """Read a checkpoint's configuration; nothing that it lacks is guessed.

    Args:
        given: a folder, a `config.json`, or the id of a model downloaded before.
        parameters: used per token, where known; else counted in the weight files, else estimated from the sizes.
        dtype: of weights and cache; `auto` is what the checkpoint says.
        kv_bytes: per number of the cache, where it differs, as 1 for fp8.
        name: for people; left out, as given.

    Raises:
        ConfigError: a key is missing, or says something impossible.
        UnsupportedPolicy: layers whose reads this model does not describe: latent, chunked or linear attention.
    """
    model = read_model(given)
    _refuse(model)
    element = _element(model, dtype)
    used, weights, source = _parameters(model, given, element, parameters)
    kv = float(element if kv_bytes is None else kv_bytes)
    return Shape(name or given, used, _groups(model), kv, weights, model.positions, source)


def _refuse(model: Model) -> None:
    if model.states:
        kinds = ", ".join(f"{count} {kind}" for kind, count in model.states.items())
        raise UnsupportedPolicy(
            f"{model.name} has layers with a state of fixed size ({kinds}), which the cost model does not price",
            accepted="models whose layers are full or sliding attention",
        )
    if any(layer.window == "chunked" for layer in model.layers):
        raise UnsupportedPolicy(
            f"{model.name} has chunked attention, whose reads rise and fall along the text",
            accepted="models whose layers are full or sliding attention",
        )
    if not any(model.config.get(key) is not None for key in _KV_HEADS):
        raise ConfigError(
            f"the configuration of {model.name} has no num_key_value_heads",
            accepted="the config.json of a decoder-only model, complete",
            do="add the key; for attention without groups it equals num_attention_heads",
        )


def _groups(model: Model) -> tuple[Group, ...]:
    heads = next(int(model.config[key]) for key in _QUERY_HEADS if model.config.get(key) is not None)
    value = model.config.get("v_head_dim")
    found = Counter(model.layers)
    return tuple(
        Group(count, heads, layer.heads, layer.dim - v, v, layer.span)
        for layer, count in found.items()
        for v in (int(value or layer.dim // 2),)
    )


def _element(model: Model, dtype: str) -> int:
    name = model.dtype if dtype == "auto" else dtype
    if not name:
        raise ConfigError(
            f"the configuration of {model.name} does not say its dtype", accepted=tuple(BYTES), do="give --dtype"
        )
    if name not in BYTES:
        raise ConfigError(f"dtype {name!r} of {model.name}", accepted=("auto", *BYTES), do="give --dtype")
    return BYTES[name]


def _parameters(model: Model, given: str, element: int, told: float | None) -> tuple[float, float, str]:
    """(parameters per token, bytes of all weights, where they are from)."""
    config = model.config
    stored = _stored(model, given, element)
    if told is not None:
        whole = stored or (estimated_bytes(config, element) if _experts(config) else told * element)
        return told, float(whole), "given"
    if stored is None and not config.get("intermediate_size") and not config.get("moe_intermediate_size"):
        raise _unclear(model, "it has no intermediate_size and there are no weight files")
    source = "estimate" if stored is None else "weight files"
    if stored is None:
        try:
            stored = estimated_bytes(config, element)
        except ConfigError as error:
            raise _unclear(model, error.given) from None
    idle = _idle(model, config)
    return stored / element - idle, float(stored), source


def _stored(model: Model, given: str, element: int) -> int | None:
    """Bytes in the weight files; those of a quantised checkpoint do not tell its parameters."""
    if model.config.get("quantization_config"):
        return None
    return stored_bytes(find_config(given).parent, element)


def _idle(model: Model, config: Mapping[str, Any]) -> int:
    """Parameters of the experts that a token does not visit."""
    experts = _experts(config)
    if not experts:
        return 0
    if config.get("decoder_sparse_step") not in (None, 1) or any(config.get(key) for key in _MIXED):
        raise _unclear(model, "only some of its layers have experts")
    missing = [key for key in ("num_experts_per_tok", "hidden_size") if not config.get(key)]
    inner = config.get("moe_intermediate_size") or config.get("intermediate_size")
    if missing or not inner:
        raise _unclear(model, f"it has no {missing[0] if missing else 'moe_intermediate_size'}")
    chosen = int(config["num_experts_per_tok"])
    if not 1 <= chosen <= experts:
        raise _unclear(model, f"{chosen} of {experts} experts are chosen")
    return 3 * int(config["hidden_size"]) * int(inner) * (experts - chosen) * len(model.layers)


def _experts(config: Mapping[str, Any]) -> int:
    return next((int(config[key]) for key in _EXPERTS if config.get(key)), 0)


def _unclear(model: Model, why: str) -> ConfigError:
    return ConfigError(
        f"the parameters that {model.name} uses per token are unclear: {why}",
        accepted="a configuration that gives them, weight files, or the number",
        do="give --parameters, one for each --model, as 8e9",
    )
