"""Model classes that a trimmed drafter builds on, and the layers of a head."""

from vllm.distributed.parallel_state import get_pp_group
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.utils import maybe_prefix

__all__ = [
    "LlamaForCausalLM",
    "LogitsProcessor",
    "MistralForCausalLM",
    "ParallelLMHead",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "get_pp_group",
    "maybe_prefix",
]
