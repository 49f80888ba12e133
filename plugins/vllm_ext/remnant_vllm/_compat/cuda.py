"""The stock backends of CUDA; they can be imported without a GPU."""

from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

__all__ = [
    "AttentionCGSupport",
    "FlashAttentionBackend",
    "FlashAttentionImpl",
    "FlashAttentionMetadataBuilder",
    "TritonAttentionBackend",
    "TritonAttentionImpl",
    "TritonAttentionMetadataBuilder",
]
