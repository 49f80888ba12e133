"""Retention gates: how long a token will matter, read from its own key and value at the moment it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from remnant.errors import ConfigError, ShapeError
from remnant_kernels.op import get_op

__all__ = ["FORMAT", "GateShape", "Gates", "RetentionGate"]

FORMAT = 1
_TENSORS = ("w1", "b1", "w2", "bias")


@dataclass(frozen=True)
class GateShape:
    """What a set of gates was made for; two sets fit the same model when theirs are equal but for `hidden`.

    Attributes:
        layers: layers that a policy governs.
        heads: KV heads.
        key_dim: channels of a key.
        value_dim: channels of a value.
        hidden: width of the gate's own hidden layer.
    """

    layers: int
    heads: int
    key_dim: int
    value_dim: int
    hidden: int

    def __str__(self) -> str:
        """As `4 layers, 2 heads, keys of 32, values of 32`."""
        return f"{self.layers} layers, {self.heads} heads, keys of {self.key_dim}, values of {self.value_dim}"


def _log_beta(w1: Tensor, b1: Tensor, w2: Tensor, bias: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One layer: `w1` `[H, F, Dk + Dv]`, `b1` and `w2` `[H, F]`, `bias` `[H]`; k, v `[B, H, S, D]` -> `[B, H, S]`."""
    if k.shape[1] != w1.shape[0] or k.shape[-1] + v.shape[-1] != w1.shape[-1]:
        given = f"keys {list(k.shape)} and values {list(v.shape)}"
        raise ShapeError(given, accepted=f"{w1.shape[0]} heads and {w1.shape[-1]} channels of key and value together")
    return get_op("retention_gate")(k=k, v=v, w1=w1, b1=b1, w2=w2, bias=bias)


@dataclass(frozen=True, eq=False)
class Gates:
    """Trained gates, as plain tensors; one small MLP per layer and KV head.

    Attributes:
        w1: `[L, H, F, Dk + Dv]` float32.
        b1: `[L, H, F]`.
        w2: `[L, H, F]`.
        bias: `[L, H]`; training starts at 10, where beta is almost 1 and nothing is forgotten.
        key_dim: Dk, channels of `w1` that read the key.
        provenance: how they were trained: plain data.

    Source: TRIM-KV, gate variant that reads `[k_h; v_h]` after RoPE. Differs: key and value are each scaled to unit
    root mean square first, without parameters, so that one learning rate serves every layer of every model.
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    bias: Tensor
    key_dim: int
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    _elsewhere: dict[torch.device, Gates] = field(default_factory=dict[torch.device, "Gates"], init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the tensors fit one another."""
        if self.w1.dim() != 4 or not 0 < self.key_dim < self.w1.shape[-1]:
            raise ShapeError(f"w1 {list(self.w1.shape)} with key_dim {self.key_dim}", accepted="[L, H, F, Dk + Dv]")
        for name, shape in (("b1", self.w1.shape[:3]), ("w2", self.w1.shape[:3]), ("bias", self.w1.shape[:2])):
            if getattr(self, name).shape != shape:
                raise ShapeError(f"{name} {list(getattr(self, name).shape)}", accepted=str(list(shape)))

    @property
    def shape(self) -> GateShape:
        """What they were made for."""
        layers, heads, hidden, width = self.w1.shape
        return GateShape(layers, heads, self.key_dim, width - self.key_dim, hidden)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"w1": self.w1, "b1": self.b1, "w2": self.w2, "bias": self.bias}

    def check(self, layers: int, heads: int, key_dim: int, value_dim: int) -> None:
        """Refuse a model of another shape.

        Raises:
            ConfigError: names the shape of the gates and the shape of the model.
        """
        wanted = GateShape(layers, heads, key_dim, value_dim, self.shape.hidden)
        if wanted != self.shape:
            do = "train gates for this model: remnant train-gates MODEL"
            raise ConfigError(f"the gates were trained for {self.shape}; the model has {wanted}", do=do)

    def to(self, device: torch.device) -> Gates:
        """The same gates on a device; copied there once."""
        if self.w1.device == device:
            return self
        if device not in self._elsewhere:
            tensors = {name: tensor.to(device) for name, tensor in self.tensors().items()}
            self._elsewhere[device] = Gates(**tensors, key_dim=self.key_dim, provenance=self.provenance)
        return self._elsewhere[device]

    @torch.no_grad()
    def log_beta(self, layer: int, k: Tensor, v: Tensor) -> Tensor:
        """How fast each token is forgotten.

        Args:
            layer: index among the layers that a policy governs.
            k: `[B, H, S, Dk]` keys after RoPE.
            v: `[B, H, S, Dv]` values.

        Returns:
            `[B, H, S]` float32, at most 0: the log of the share that survives each step.
        """
        here = self.to(k.device)
        return _log_beta(here.w1[layer], here.b1[layer], here.w2[layer], here.bias[layer], k, v).float()

    def save(self, path: Path | str) -> None:
        """Write a safetensors file whose metadata carries the shape and the provenance."""
        from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

        shape = self.shape
        about = {"format": FORMAT, **vars(shape), "provenance": dict(self.provenance)}
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.tensors().items()}
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(target.name + ".tmp")
        save_file(tensors, unfinished, metadata={"remnant_gates": json.dumps(about)})
        unfinished.replace(target)

    @classmethod
    def load(cls, path: Path | str) -> Gates:
        """Read what `save` wrote.

        Raises:
            ConfigError: no such file, not a file of gates, another format, or tensors that contradict the metadata.
        """
        from safetensors import SafetensorError, safe_open

        open_file: Any = safe_open
        if not Path(path).is_file():
            raise ConfigError(f"gates file {str(path)!r} does not exist", do="train it: remnant train-gates MODEL")
        try:
            with open_file(str(path), "pt") as file:
                text = cast("dict[str, str]", file.metadata() or {}).get("remnant_gates", "{}")
                names = sorted(cast("list[str]", file.keys()))
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
            about = cast("dict[str, Any]", json.loads(text))
        except (SafetensorError, ValueError) as error:
            given = f"gates file {str(path)!r} cannot be read: {error}"
            raise ConfigError(given, accepted="a safetensors file") from None
        if about.get("format") != FORMAT or set(tensors) != set(_TENSORS):
            given = f"gates file {str(path)!r} has format {about.get('format')} with tensors {', '.join(names)}"
            raise ConfigError(given, accepted=f"format {FORMAT} with {', '.join(_TENSORS)}")
        try:
            gates = cls(**tensors, key_dim=int(about["key_dim"]), provenance=about.get("provenance", {}))
            wanted = GateShape(*(int(about[name]) for name in GateShape.__dataclass_fields__))
        except (KeyError, TypeError, ShapeError) as error:
            raise ConfigError(f"gates file {str(path)!r} is damaged: {error}") from None
        if gates.shape != wanted:
            raise ConfigError(f"gates file {str(path)!r} says {wanted} and holds {gates.shape}")
        return gates


class RetentionGate(nn.Module):
    """The trainable twin of `Gates`.

    Args:
        shape: of the model and of the gate.
        bias: initial bias; 10 starts as a full cache.
        seed: of the initial weights; they do not touch torch's global generator.
    """

    def __init__(self, shape: GateShape, bias: float = 10.0, seed: int = 0) -> None:
        """See the class."""
        super().__init__()
        self.shape = shape
        rng = torch.Generator().manual_seed(seed)
        size, width = (shape.layers, shape.heads, shape.hidden), shape.key_dim + shape.value_dim
        self.w1 = nn.Parameter(torch.randn(*size, width, generator=rng) * width**-0.5)
        self.b1 = nn.Parameter(torch.zeros(size))
        self.w2 = nn.Parameter(torch.randn(*size, generator=rng) * 0.02)
        self.bias = nn.Parameter(torch.full(size[:2], bias))

    def forward(self, layer: int, k: Tensor, v: Tensor) -> Tensor:
        """`[B, H, S]` log beta of a layer, as `Gates.log_beta`, with gradients."""
        return _log_beta(self.w1[layer], self.b1[layer], self.w2[layer], self.bias[layer], k, v)

    @classmethod
    def of(cls, gates: Gates) -> RetentionGate:
        """Go on training where `gates` stopped."""
        twin = cls(gates.shape)
        with torch.no_grad():
            for name, tensor in gates.tensors().items():
                twin.get_parameter(name).copy_(tensor)
        return twin

    def export(self, provenance: Mapping[str, Any] | None = None) -> Gates:
        """A copy as plain tensors."""
        tensors = {name: p.detach().float().cpu().clone() for name, p in self.named_parameters()}
        return Gates(**tensors, key_dim=self.shape.key_dim, provenance=provenance or {})
