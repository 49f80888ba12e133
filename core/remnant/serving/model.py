"""What a model writes into the KV cache, read from its `config.json` alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.serving.checkpoint import find_config, read_json

__all__ = ["BYTES", "Layer", "Model", "Window", "read_config", "read_model"]

Window = Literal["none", "sliding", "chunked"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per element of the types that a cache with eviction may have."""

_NESTED = ("text_config", "llm_config", "language_config")
_KINDS: dict[str, Window] = {
    "full_attention": "none",
    "attention": "none",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
}
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
"""Model type -> every how many layers one has full attention, where older files do not say it."""


@dataclass(frozen=True)
class Layer:
    """One layer with a KV cache that grows.

    Attributes:
        heads: KV heads.
        dim: channels of a key and of a value together, per head.
        window: what limits how far it looks back; only `none` is touched by eviction.
        span: tokens of that limit; 0 without one.
    """

    heads: int
    dim: int
    window: Window = "none"
    span: int = 0

    def token_bytes(self, element: int, tp: int = 1) -> int:
        """Bytes per token on each of `tp` devices; heads are repeated where there are fewer of them than devices."""
        return max(1, self.heads // tp) * self.dim * element


@dataclass(frozen=True)
class Model:
    """A model as a server's memory sees it.

    Attributes:
        name: as given.
        layers: those with a KV cache that grows with the text.
        states: kind -> number of layers with a state of fixed size, which is not counted.
        dtype: of weights and cache as the checkpoint says, or `""`.
        positions: longest text it was made for, in tokens; 0 when unknown.
        config: the text part of the configuration.
    """

    name: str
    layers: tuple[Layer, ...]
    states: Mapping[str, int]
    dtype: str
    positions: int
    config: Mapping[str, Any]

    def kinds(self) -> dict[str, int]:
        """Layers by kind, for people: `{"full": 8, "sliding": 40}`."""
        found = Counter("full" if layer.window == "none" else layer.window for layer in self.layers)
        return {**found, **self.states}


def read_model(given: str) -> Model:
    """Read the configuration of a checkpoint.

    Args:
        given: a folder, a `config.json`, or an id on the Hugging Face hub that has been downloaded before.

    Raises:
        ConfigError: there is no such file, or it lacks what is needed.
        UnsupportedPolicy: a model whose cache the plugin cannot evict from.
    """
    path = find_config(given)
    config = read_json(path)
    if _incomplete(_text(config)):
        config = _filled_in(path, config)
    return read_config(config, given)


def read_config(config: Mapping[str, Any], name: str = "model") -> Model:
    """The model that a configuration describes.

    Args:
        config: the content of `config.json`; the text part of a multimodal one is looked for.
        name: for messages.
    """
    text = _text(config)
    _refuse(text, name)
    count = _number(text, name, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    kinds = _kinds(text, count)
    layers: list[Layer] = []
    states: Counter[str] = Counter()
    for kind in kinds:
        window = _KINDS.get(kind)
        if window is None:
            states[kind] += 1
        else:
            layers.append(_layer(text, name, window))
    dtype = str(text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype") or "")
    positions = int(text.get("max_position_embeddings") or text.get("n_positions") or 0)
    return Model(name, tuple(layers), dict(states), dtype.removeprefix("torch."), positions, text)


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _NESTED:
        if isinstance(config.get(key), Mapping):
            return cast("Mapping[str, Any]", config[key])
    return config


def _refuse(text: Mapping[str, Any], name: str) -> None:
    """Models from whose caches the plugin for vLLM evicts nothing, for the reasons that it gives itself."""
    if text.get("kv_lora_rank"):
        raise UnsupportedPolicy(
            f"{name} uses latent attention (MLA): its cache has no keys per head to choose from",
            accepted="models with full-attention layers",
        )
    if text.get("num_kv_shared_layers"):
        raise UnsupportedPolicy(
            f"in {name} {text['num_kv_shared_layers']} layers read the keys of others",
            accepted="models whose layers have keys of their own",
        )
    if text.get("is_encoder_decoder"):
        raise UnsupportedPolicy(f"{name} has an encoder", accepted="decoder-only models")


def _kinds(text: Mapping[str, Any], count: int) -> Sequence[str]:
    """A kind per layer: as listed, or by the rule that the model type has."""
    given = text.get("layer_types") or text.get("layers_block_type")
    if given:
        return [str(kind) for kind in given][:count]
    span = text.get("sliding_window")
    if not span or text.get("use_sliding_window") is False:
        return ["full_attention"] * count
    every = text.get("sliding_window_pattern") or _PATTERNS.get(str(text.get("model_type")))
    if not every:
        first = int(text.get("max_window_layers") or 0) if text.get("use_sliding_window") else 0
        return ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    return ["sliding_attention" if (i + 1) % int(every) else "full_attention" for i in range(count)]


def _layer(text: Mapping[str, Any], name: str, window: Window) -> Layer:
    query = _number(text, name, "num_attention_heads", "n_head", "num_heads", "n_heads")
    heads = int(_first(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or query)
    dim = int(text.get("head_dim") or 0)
    if window == "none":  # newer Gemmas give their full layers a shape of their own
        heads = int(text.get("num_global_key_value_heads") or heads)
        dim = int(text.get("global_head_dim") or dim)
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        heads = 1
    if not dim:
        dim = _number(text, name, "hidden_size", "n_embd", "d_model") // query
    value = int(text.get("v_head_dim") or dim)
    spans = {"none": 0, "sliding": text.get("sliding_window"), "chunked": text.get("attention_chunk_size")}
    span = int(spans[window] or 0)
    if window != "none" and not span:
        raise ConfigError(f"{name} has {window} layers, but its configuration says nothing about their reach")
    return Layer(heads, dim + value, window, span)


def _first(text: Mapping[str, Any], *keys: str) -> Any:
    return next((text[key] for key in keys if text.get(key) is not None), None)


def _number(text: Mapping[str, Any], name: str, *keys: str) -> int:
    found = _first(text, *keys)
    if not isinstance(found, int) or found < 1:
        raise ConfigError(
            f"the configuration of {name} has no {keys[0]}",
            accepted="the config.json of a decoder-only model",
            do="if the model relies on defaults of transformers, install it: pip install 'remnant[hf]'",
        )
    return found


def _incomplete(text: Mapping[str, Any]) -> bool:
    """Whether the file leaves numbers to the defaults of its class, which only transformers knows."""
    heads = _first(text, "num_attention_heads", "n_head", "num_heads", "n_heads")
    kv = _first(text, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query", "n_head")
    layers = _first(text, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    return heads is None or kv is None or layers is None


def _filled_in(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with those defaults, where transformers is installed; else as it is."""
    try:
        from transformers import AutoConfig
    except ImportError:
        return config
    try:
        whole: Any = AutoConfig  # its types are known to those only who have installed it
        read: str = whole.from_pretrained(str(path.parent), local_files_only=True).to_json_string(use_diff=False)
    except Exception as error:  # an unknown model type, remote code, a file that was renamed
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"{path.name} is incomplete and transformers cannot read it: {reason}") from error
    return cast("Mapping[str, Any]", json.loads(read))
