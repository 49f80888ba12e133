"""The CPU backend under a policy; the name stands in `--attention-backend CUSTOM`."""

from __future__ import annotations

from remnant_vllm._compat.engine import CPUAttentionBackend, CPUAttentionBackendImpl, CPUAttentionMetadataBuilder
from remnant_vllm.codec import PackedCodec
from remnant_vllm.impl import BuilderMixin, ImplMixin

__all__ = ["RemnantCPUBackend"]


class RemnantCPUBackend(CPUAttentionBackend):
    """Stock CPU attention with eviction."""

    @staticmethod
    def get_name() -> str:
        """A member of vLLM's list of backends."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[RemnantCPUImpl]:
        """The implementation."""
        return RemnantCPUImpl

    @staticmethod
    def get_builder_cls() -> type[RemnantCPUBuilder]:
        """The metadata builder."""
        return RemnantCPUBuilder


class RemnantCPUBuilder(BuilderMixin, CPUAttentionMetadataBuilder):
    """See `BuilderMixin`."""


class RemnantCPUImpl(ImplMixin, CPUAttentionBackendImpl):
    """See `ImplMixin`."""

    remnant_codec = PackedCodec()
