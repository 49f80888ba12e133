"""The testbed model: its shape, and how to load the shipped weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from remnant.testbed.tokenizer import Alphabet, load_tokenizer

__all__ = ["WEIGHTS_FILE", "export", "load", "new_model", "testbed_config"]

WEIGHTS_FILE = Path(__file__).with_name("model.safetensors")


def testbed_config() -> Any:
    """The `LlamaConfig` of the testbed: 4 layers, 128 wide, 4 query and 2 KV heads of 32 channels, 4,096 positions."""
    from transformers import LlamaConfig

    tokenizer = load_tokenizer()
    marks = Alphabet.of(tokenizer)
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=marks.pad,
        bos_token_id=marks.bos,
        eos_token_id=marks.eos,
    )


def new_model() -> Any:
    """An untrained testbed model, initialised from torch's current seed.

    A token's identity must survive the residual stream for copying to be learned at all: embeddings start large and
    the projections that write into the stream start small. With one scale for all, copying is not learned in an hour.
    """
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(testbed_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, _initial_std(name))
    return model


def _initial_std(name: str) -> float:
    if "embed" in name:
        return 0.2
    return 0.01 if "o_proj" in name or "down_proj" in name else 0.088


@lru_cache(maxsize=1)
def _weights() -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in load_file(WEIGHTS_FILE).items()}


def _with_bos(tokenizer: Any) -> Any:
    """A copy that puts `<bos>` before every text: the model never saw a text without it and is lost there."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", Alphabet.of(tokenizer).bos)]
    )
    return copy


def load(dtype: torch.dtype = torch.float32, device: str = "cpu", attn_implementation: str = "sdpa") -> tuple[Any, Any]:
    """Load the trained testbed and its tokenizer; offline, from the wheel.

    Returns:
        `(model, tokenizer)`: a `LlamaForCausalLM` in eval mode and a `PreTrainedTokenizerFast`.
    """
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    config = testbed_config()
    config._attn_implementation = attn_implementation
    model = cast(Any, LlamaForCausalLM(config))  # `to` is wrapped by transformers in a way that loses its type
    model.load_state_dict(_weights(), strict=False)
    model.tie_weights()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_with_bos(load_tokenizer()),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def export(folder: Path) -> Path:
    """Write model and tokenizer as an ordinary checkpoint folder, for servers that start from one.

    Returns:
        The folder, created if it was not there; files of the same names are replaced.
    """
    model, tokenizer = load()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
