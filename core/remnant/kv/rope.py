"""A layer's rotation, rebuilt from the model's configuration; refused where it cannot be rebuilt exactly."""

from __future__ import annotations

from typing import Any

import torch

from remnant.errors import UnsupportedPolicy
from remnant.kv.view import Rope

__all__ = ["rope_of"]

_INTERLEAVED = {"glm", "glm4", "cohere", "cohere2", "ernie4_5", "llama4_text", "deepseek_v2", "deepseek_v3", "gptj"}
_EXACT = {"default", "linear", "llama3", "yarn"}


def rope_of(config: Any, layer_type: str = "full_attention") -> Rope:
    """Frequencies of the rotation that a configuration describes.

    Args:
        config: the text configuration of a model.
        layer_type: for configurations with one rotation per kind of layer (Gemma 3).

    Raises:
        UnsupportedPolicy: the rotation changes with length (dynamic, longrope), pairs channels in another way, or is
            not described by the configuration.
    """
    kind = getattr(config, "model_type", "?")
    parameters: dict[str, Any] | None = getattr(config, "rope_parameters", None)
    if parameters is not None and layer_type in parameters:
        parameters = parameters[layer_type]
    name = parameters.get("rope_type", "default") if parameters is not None else None
    if parameters is None or name not in _EXACT or kind in _INTERLEAVED:
        raise UnsupportedPolicy(
            f"model type {kind!r} rotates keys by rope_type {name!r}, which cannot be undone exactly",
            accepted=f"half-split rotations of type {', '.join(sorted(_EXACT))}",
            do="choose a policy that keeps positions, for example snapkv or streaming with positions='keep'",
        )
    if name == "default":
        return Rope(_default(config, parameters))
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    inv_freq, scale = ROPE_INIT_FUNCTIONS[name](config, torch.device("cpu"))
    return Rope(inv_freq.float(), float(scale))


def _default(config: Any, parameters: dict[str, Any]) -> torch.Tensor:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = int(size * parameters.get("partial_rotary_factor", 1.0))
    steps = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    return 1.0 / (parameters["rope_theta"] ** steps)
