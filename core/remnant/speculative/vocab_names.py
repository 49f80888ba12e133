"""Names that a trimmed model goes by; imports nothing, since servers read it before anything else."""

__all__ = ["SERVED", "TRIMMED", "trimmed_name"]

TRIMMED = "RemnantTrimmed"
"""What stands before the architecture of a trimmed causal model."""

SERVED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Architectures that `remnant_vllm` serves trimmed."""


def trimmed_name(architecture: str) -> str:
    """Name of an architecture with a smaller head; one that has it keeps it.

    Example: trimmed_name("LlamaForCausalLM") -> "RemnantTrimmedLlamaForCausalLM"
    """
    return TRIMMED + architecture.removeprefix(TRIMMED)
