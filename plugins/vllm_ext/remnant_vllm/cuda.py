"""FlashAttention and Triton backends under a policy. Not yet run on a GPU: the parts are tested on the CPU one by one.

Compaction runs in Python after the attention of a layer, so attention must never be inside a full CUDA graph: these
builders say so, and vLLM then captures the pieces around it.
"""

from __future__ import annotations

from typing import Any

from remnant_vllm._compat.cuda import (
    AttentionCGSupport,
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)
from remnant_vllm.codec import PlainCodec
from remnant_vllm.impl import BuilderMixin, ImplMixin
from remnant_vllm.spec import RemnantSpec

__all__ = ["RemnantFlashBackend", "RemnantTritonBackend"]


class CudaBuilderMixin(BuilderMixin):
    """What a builder on CUDA must not do once tables are shifted."""

    supports_update_block_table = False  # would copy an unshifted table into shifted metadata

    def __init__(self, kv_cache_spec: Any, *args: Any, **kwargs: Any) -> None:
        """As the parents; a graph-recorded refresh of draft metadata would bypass the shift."""
        super().__init__(kv_cache_spec, *args, **kwargs)
        if isinstance(kv_cache_spec, RemnantSpec):
            self.supports_draft_decode_metadata_update = False

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """None for governed layers, the stock answer for others."""
        if isinstance(kv_cache_spec, RemnantSpec):
            return AttentionCGSupport.NEVER
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)  # type: ignore[misc]


class RemnantFlashBackend(FlashAttentionBackend):
    """FlashAttention with eviction."""

    @staticmethod
    def get_name() -> str:
        """A member of vLLM's list of backends."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[RemnantFlashImpl]:
        """The implementation."""
        return RemnantFlashImpl

    @staticmethod
    def get_builder_cls() -> type[RemnantFlashBuilder]:
        """The metadata builder."""
        return RemnantFlashBuilder


class RemnantFlashBuilder(CudaBuilderMixin, FlashAttentionMetadataBuilder):
    """See the mix-ins."""


class RemnantFlashImpl(ImplMixin, FlashAttentionImpl):
    """See `ImplMixin`."""

    remnant_codec = PlainCodec()


class RemnantTritonBackend(TritonAttentionBackend):
    """Triton attention with eviction."""

    @staticmethod
    def get_name() -> str:
        """A member of vLLM's list of backends."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[RemnantTritonImpl]:
        """The implementation."""
        return RemnantTritonImpl

    @staticmethod
    def get_builder_cls() -> type[RemnantTritonBuilder]:
        """The metadata builder."""
        return RemnantTritonBuilder


class RemnantTritonBuilder(CudaBuilderMixin, TritonAttentionMetadataBuilder):
    """See the mix-ins."""


class RemnantTritonImpl(ImplMixin, TritonAttentionImpl):
    """See `ImplMixin`."""

    remnant_codec = PlainCodec()
