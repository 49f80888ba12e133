"""What an EAGLE-3 drafter looks like, from its configuration; what the forward of ours does not know is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from remnant.errors import ConfigError

__all__ = ["ARCHITECTURES", "Eagle3Shape"]

ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
"""Names of the drafter's one layer with the parts of a Llama layer; there are others, with parts of their own."""

_MEASURE_NOTHING = "trim by counts, with --held-out 0, which reads no drafter"


@dataclass(frozen=True)
class Eagle3Shape:
    """Sizes and switches of an EAGLE-3 drafter.

    Args:
        hidden: d, channels of the drafter.
        target_hidden: channels of the target.
        mlp: channels between the two halves of the feed-forward part.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: D, channels of a head.
        vocab: V, tokens of the target.
        rows: of the drafter's head, at most V.
        layers: which of the target's states it reads: 0 are the embeddings, i what layer i reads, ascending. None takes
            `(2, L // 2, L - 3)` of a target of L layers, as servers do.
        eps: of its norms.
        norm_before_residual: whether the residual path starts after the norm of the hidden state.
        norm_output: whether the next step is fed the state after the last norm.
        rope: settings of the rotary embedding, by the names that configurations of transformers give them.

    Source: Li et al. 2025 (EAGLE-3), arXiv 2503.01840; the switches are those that vLLM's loader knows.
    """

    hidden: int
    target_hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rows: int
    layers: tuple[int, ...] | None = None
    eps: float = 1e-6
    norm_before_residual: bool = False
    norm_output: bool = False
    rope: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Eagle3Shape:
        """Read a drafter's `config.json`.

        Raises:
            ConfigError: another architecture, a missing size, sizes that contradict each other, or a switch that
                changes the forward in a way that is not known here.
        """
        _refuse_unknown(config)
        sizes = {name: _size(config, key) for name, key in _SIZES.items()}
        head_dim = config.get("head_dim") or sizes["hidden"] // sizes["heads"]
        if sizes["heads"] % sizes["kv_heads"] or head_dim % 2:
            given = f"{sizes['heads']} heads over {sizes['kv_heads']} of keys, {head_dim} channels each"
            raise ConfigError(given, accepted="whole groups of heads, an even number of channels")
        return cls(
            **sizes,
            target_hidden=config.get("target_hidden_size") or sizes["hidden"],
            head_dim=head_dim,
            rows=config.get("draft_vocab_size") or sizes["vocab"],
            layers=_layers(config),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            norm_before_residual=bool(config.get("norm_before_residual")),
            norm_output=bool(config.get("norm_output")),
            rope={key: config[key] for key in ("rope_parameters", "rope_scaling", "rope_theta") if config.get(key)},
        )

    def layers_of(self, count: int) -> tuple[int, ...]:
        """Which states of a target are read, ascending, each once.

        Args:
            count: L, layers of the target.

        Raises:
            ConfigError: there is no such state. That of L itself is not among them: models of transformers show it
                after their last norm, and drafters read it before.
        """
        found = tuple(sorted(set(self.layers or (2, count // 2, count - 3))))
        if found[0] < 0 or found[-1] >= count:
            do = "give the drafter's target; a small one needs eagle_aux_hidden_state_layer_ids in the drafter's config"
            raise ConfigError(
                f"states {list(found)} of a target of {count} layers", accepted=f"0 to {count - 1}", do=do
            )
        return found


_SIZES = {
    "hidden": "hidden_size",
    "mlp": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "vocab": "vocab_size",
}

_KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_hidden_layers": (lambda x: x in (None, 1), "1"),
    "hidden_act": (lambda x: x in (None, "silu"), "silu"),
    "attention_bias": (lambda x: not x, "false"),
    "mlp_bias": (lambda x: not x, "false"),
    "norm_before_fc": (lambda x: not x, "false"),
    "fc_norm": (lambda x: not x, "false"),
    "logit_scale": (lambda x: x in (None, 1), "1"),
    "partial_rotary_factor": (lambda x: x in (None, 1), "1"),
    "layer_types": (lambda x: not x or set(x) == {"full_attention"}, "full_attention"),
}


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    names: list[Any] = config.get("architectures") or []
    if not names or names[0] not in ARCHITECTURES:
        raise ConfigError(f"an EAGLE-3 drafter of type {names}", accepted=ARCHITECTURES, do=_MEASURE_NOTHING)
    eagle = cast("dict[str, Any]", config.get("eagle_config") or {})
    for key, (known, accepted) in _KNOWN.items():
        value = eagle.get(key, config.get(key))
        if not known(value):
            raise ConfigError(f"an EAGLE-3 drafter with {key} {value!r}", accepted=accepted, do=_MEASURE_NOTHING)
    if eagle.get("use_aux_hidden_state", True) is not True:
        given = "an EAGLE-3 drafter without auxiliary states"
        raise ConfigError(given, accepted="use_aux_hidden_state true", do=_MEASURE_NOTHING)


def _size(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"an EAGLE-3 drafter with {key} {value!r}", accepted="a size of 1 or more")
    return value


def _layers(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    key = "eagle_aux_hidden_state_layer_ids"
    eagle = cast("dict[str, Any]", config.get("eagle_config") or {})
    given: Sequence[int] = config.get(key) or eagle.get(key) or ()
    return tuple(given) or None
