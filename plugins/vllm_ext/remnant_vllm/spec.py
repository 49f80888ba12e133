"""What the scheduler is told about a layer whose blocks come back: a cache specification of our own.

Specifications cross processes by pickle, and unpickling imports this module: that is how the process of the scheduler
learns of the manager.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from remnant.errors import UnsupportedPolicy
from remnant_vllm._compat.engine import Attention, FullAttentionSpec, KVCacheSpecRegistry, replace_as, wrap_once
from remnant_vllm.asked import eviction
from remnant_vllm.counts import live_blocks
from remnant_vllm.settings import Settings

__all__ = ["RemnantSpec", "governed", "install", "peers"]


@dataclass(frozen=True, kw_only=True)
class RemnantSpec(FullAttentionSpec):
    """Full attention over what a policy keeps.

    Attributes:
        remnant: the settings of the engine.
        in_flight: most tokens of all requests that one step may write before eviction.
        layer: place among the governed layers, where the policy gives layers different budgets; else 0.
        layers: number of governed layers in that case, else 1. Layers with equal specifications share a block table.
    """

    remnant: Settings
    in_flight: int
    layer: int = 0
    layers: int = 1

    def settings(self, prompt_len: int, asked: Settings | None = None) -> Settings:
        """The settings of a request with this layer's own budget in place of the average one."""
        chosen = self.remnant if asked is None else asked
        if self.layers == 1 or chosen.budget is None:
            return chosen
        return _of_layer(chosen, prompt_len, self.layer, self.layers)

    def live_blocks(self) -> int:
        """Most blocks that a request holds at once in mode `stream`, new tokens included."""
        return live_blocks(self.remnant.budget or 0, self.in_flight, self.block_size)

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Bytes of a request of full length: what start-up insists on."""
        full = super().max_memory_usage_bytes(vllm_config)
        if self.remnant.mode != "stream":
            return full
        return min(full, self.live_blocks() * self.page_size_bytes)

    @classmethod
    def merge(cls, specs: list[Any]) -> Any:
        """One group, one specification: the parent would swallow layers that do not evict."""
        if any(spec != specs[0] for spec in specs):
            raise AssertionError("layers with different remnant settings cannot share a KV cache group")
        return specs[0]

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, Any]) -> bool:
        """Only with equals: a group has one manager, and that one counts for all of its layers."""
        return all(spec == self for spec in kv_cache_specs.values())


@lru_cache(maxsize=4096)
def _of_layer(chosen: Settings, prompt_len: int, layer: int, layers: int) -> Settings:
    """Asked for every row, group and step, and the same each time."""
    assert chosen.budget is not None
    return replace(chosen, budget=chosen.make().layer_share(prompt_len, layer, layers, chosen.budget))


def governed(vllm_config: Any) -> list[str]:
    """Names of the attention layers that have a `RemnantSpec`, in the order of the model."""
    layers = vllm_config.compilation_config.static_forward_context
    return [name for name, layer in layers.items() if getattr(layer, "remnant_governed", False)]


def peers(name: str, names: list[str]) -> list[str]:
    """Those of the same model: a draft model's layers stand in the same list under a prefix of their own."""
    return [other for other in names if _stem(other) == _stem(name)]


def _stem(name: str) -> str:
    """What stands in front of the layer's number."""
    return re.split(r"\d", name, maxsplit=1)[0]


def _specify(original: Any) -> Any:
    """`Attention.get_kv_cache_spec`: full attention on our backend becomes ours; everything else stays as it is."""

    def get_kv_cache_spec(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        spec = original(self, vllm_config, *args, **kwargs)
        if type(spec) is not FullAttentionSpec or self.attn_backend.get_name() != "CUSTOM":
            return spec
        given = eviction(vllm_config)
        if given is None:
            return spec
        self.remnant_governed = True
        settings = Settings.parse(given)
        names = peers(self.layer_name, _candidates(vllm_config))
        place = {}
        if settings.by_layer:
            place = {"layer": names.index(self.layer_name), "layers": len(names)}
        return replace_as(spec, RemnantSpec, remnant=settings, in_flight=vllm_config.max_in_flight_tokens, **place)

    return get_kv_cache_spec


def _candidates(vllm_config: Any) -> list[str]:
    """Names of all layers that will be governed; asked for while the specifications are still being made."""
    layers = vllm_config.compilation_config.static_forward_context
    names = []
    for name, layer in layers.items():
        if not isinstance(layer, Attention) or layer.attn_backend.get_name() != "CUSTOM":
            continue
        if layer.sliding_window is None and layer.attn_type == "decoder":
            names.append(name)
        if layer.kv_sharing_target_layer_name is not None:
            raise UnsupportedPolicy(
                f"layer {name} reads the keys of layer {layer.kv_sharing_target_layer_name}",
                accepted="models whose layers have keys of their own",
                do="leave out --attention-backend CUSTOM",
            )
    return names


def install() -> None:
    """Register the specification with its manager and have layers ask for it; once per process."""
    from remnant_vllm.manager import RemnantManager

    # A plugin that registers first would hide the built-in specifications in worker processes.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(RemnantSpec, RemnantManager, uniform_type_base_spec=RemnantSpec)
    wrap_once(Attention, "get_kv_cache_spec", _specify)


install()
