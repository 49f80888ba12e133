"""Where vLLM looks architectures up; the classes themselves are imported only when a model asks for one."""

from vllm.model_executor.models.registry import ModelRegistry

__all__ = ["ModelRegistry"]
