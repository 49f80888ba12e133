"""One model in bytes, read from its configuration: weights, keys and values per token, widths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from remnant.errors import ConfigError
from remnant.serving.checkpoint import estimated_bytes, find_config, stored_bytes
from remnant.serving.model import BYTES, Model, read_config, read_model

__all__ = ["Sizes", "read_sizes"]


@dataclass(frozen=True)
class Sizes:
    """One model as the memory model sees it.

    Attributes:
        name: for messages.
        weights: bytes of all parameters.
        weights_from: `given`, `weight files` or `estimate`.
        element: bytes per number of weights and cache.
        slots: per kind of layer, (bytes per token of one layer, tokens it looks back or 0, number of such layers).
        copy: bytes per token of one layer's keys and values, repeated for every query head.
        width: hidden size.
        inner: width of the feed-forward part.
        vocab: token ids.
        positions: longest text that it was made for, in tokens; 0 when unknown.
    """

    name: str
    weights: int
    weights_from: str
    element: int
    slots: tuple[tuple[int, int, int], ...]
    copy: int
    width: int
    inner: int
    vocab: int
    positions: int

    @property
    def kv_per_token(self) -> int:
        """Bytes of keys and values per token, all layers together."""
        return sum(size * count for size, _, count in self.slots)

    def kv(self, length: int, extra: int, limit: int | None = None) -> int:
        """Bytes of the keys and values of one row.

        Args:
            length: tokens of the text; a layer with a window holds no more than that.
            extra: slots on top for tokens that are not accepted yet.
            limit: most tokens that a layer of full attention keeps; None keeps all.
        """
        full = length if limit is None else min(length, limit)
        return sum(count * size * ((min(length, span) if span else full) + extra) for size, span, count in self.slots)


def read_sizes(given: Any, dtype: Any = "auto", weights: int | None = None) -> Sizes:
    """Read what a configuration says.

    Args:
        given: a checkpoint's folder, its `config.json`, a dict with that content, or a configuration object of
            transformers.
        dtype: of weights and cache: a name, a torch type, or `auto` for what the checkpoint says (bfloat16 when it
            says nothing).
        weights: bytes, where they are known; else the weight files are asked, else the sizes of the configuration.

    Raises:
        ConfigError: not a configuration, one without the sizes, or a type that no cache has.
        UnsupportedPolicy: a model without keys and values per head.
    """
    model = _model(given)
    element = _element(model, dtype)
    text = model.config
    width = _size(text, model.name, "hidden_size", "n_embd", "d_model")
    vocab = _size(text, model.name, "vocab_size")
    inner = _size(text, model.name, "intermediate_size", "ffn_dim", "n_inner", default=4 * width)
    whole, source = (weights, "given") if weights is not None else _weights(given, model, element)
    query = _size(text, model.name, "num_attention_heads", "n_head", "num_heads", "n_heads")
    copy = max((layer.token_bytes(element) * max(1, query // layer.heads) for layer in model.layers), default=0)
    groups = Counter((layer.token_bytes(element), layer.span) for layer in model.layers)
    slots = tuple((size, span, count) for (size, span), count in groups.items())
    return Sizes(model.name, whole, source, element, slots, copy, width, inner, vocab, model.positions)


def _model(given: Any) -> Model:
    if isinstance(given, (str, Path)):
        return read_model(str(given))
    if isinstance(given, Mapping):
        return read_config(cast("Mapping[str, Any]", given))
    if hasattr(given, "to_dict"):
        return read_config(given.to_dict(), str(getattr(given, "model_type", "") or "model"))
    raise ConfigError(
        f"a configuration of type {type(given).__name__}",
        accepted="a folder, a config.json, its content as a dict, or a configuration object of transformers",
    )


def _element(model: Model, dtype: Any) -> int:
    asked = str("auto" if dtype is None else dtype).removeprefix("torch.")
    name = (model.dtype or "bfloat16") if asked == "auto" else asked
    if name not in BYTES:
        raise ConfigError(f"dtype {name!r} of {model.name}", accepted=("auto", *BYTES))
    return BYTES[name]


def _weights(given: Any, model: Model, element: int) -> tuple[int, str]:
    """(bytes, where they are from); a head over a reduced vocabulary is counted as small as it is."""
    if isinstance(given, (str, Path)):
        stored = stored_bytes(find_config(str(given)).parent, element)
        if stored is not None:
            return stored, "weight files"
    whole = estimated_bytes(model.config, element)
    reduced = model.config.get("draft_vocab_size")
    if reduced and not model.config.get("tie_word_embeddings"):
        whole -= (int(model.config["vocab_size"]) - int(reduced)) * int(model.config["hidden_size"]) * element
    return whole, "estimate"


def _size(text: Mapping[str, Any], name: str, *keys: str, default: int | None = None) -> int:
    found = next((text[key] for key in keys if text.get(key) is not None), default)
    if isinstance(found, list):  # one width per layer
        found = max(cast("list[int]", found))
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"the configuration of {name} has no {keys[0]}", accepted="a config.json of a decoder")
    return found
