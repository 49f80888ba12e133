"""Mix-ins over a stock attention backend: they shorten what it reads, and act after it has read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from remnant_vllm.codec import Codec
from remnant_vllm.compact import Compactor, Place
from remnant_vllm.report import report_once
from remnant_vllm.rows import rows
from remnant_vllm.shift import Shift
from remnant_vllm.spec import RemnantSpec, governed, peers
from remnant_vllm.startup import rope_for

__all__ = ["BuilderMixin", "ImplMixin"]


class BuilderMixin:
    """In front of a stock metadata builder."""

    def __init__(
        self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any, **kwargs: Any
    ) -> None:
        """As the parent; a group of ours also tells its layers where they stand."""
        super().__init__(kv_cache_spec, layer_names, vllm_config, device, **kwargs)  # type: ignore[call-arg]
        self.remnant_shift: Shift | None = None
        if isinstance(kv_cache_spec, RemnantSpec):
            self.remnant_shift = Shift(kv_cache_spec, layer_names[0])
            _place(layer_names, vllm_config, kv_cache_spec)
            report_once(vllm_config, kv_cache_spec)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False, **kwargs: Any) -> Any:
        """Metadata over what is still there; the jobs of the step travel with it."""
        jobs: list[Any] = []
        if self.remnant_shift is not None:
            common_attn_metadata, jobs = self.remnant_shift(common_attn_metadata)
            common_prefix_len = 0  # blocks that rows share may be gone from some of them
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build, **kwargs)  # type: ignore[misc]
        metadata.remnant_jobs = jobs
        return metadata


def _place(layer_names: list[str], vllm_config: Any, spec: RemnantSpec) -> None:
    layers = vllm_config.compilation_config.static_forward_context
    rope = rope_for(spec.remnant.make(), vllm_config)
    for name in layer_names:
        layer, own = layers[name], peers(name, governed(vllm_config))
        impl = layer.impl
        softcap = getattr(impl, "logits_soft_cap", None) or None
        place = Place(own.index(name), len(own), impl.scale, softcap, impl.sinks, rope)
        layer.remnant_compactor = Compactor(impl.remnant_codec, place)


class ImplMixin:
    """In front of a stock attention implementation.

    Attributes:
        remnant_codec: how this backend lays out its cache.
    """

    remnant_codec: Codec

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Stock attention, then what the step asks of this layer."""
        out = super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)  # type: ignore[misc]
        jobs = getattr(attn_metadata, "remnant_jobs", ())
        if jobs:
            compactor: Compactor = layer.remnant_compactor
            compactor.forget(rows().alive)
            for job in jobs:
                table = attn_metadata.block_table[job.row]
                compactor(job, layer, query, key, value, kv_cache, table, out)
        return out
