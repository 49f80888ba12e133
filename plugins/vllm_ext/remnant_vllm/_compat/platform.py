"""What the entry point needs, in every process of vLLM and before any flag is read: nothing heavy."""

from vllm.config import get_current_vllm_config_or_none
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

__all__ = ["AttentionBackendEnum", "current_platform", "get_current_vllm_config_or_none", "register_backend"]
