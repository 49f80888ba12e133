"""The target: what is known of it before its weights are loaded, and then the model itself."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative.fastdraft.hf import hf

__all__ = ["Target", "load_model", "load_tokenizer", "read_target", "stops"]


@dataclass(frozen=True)
class Target:
    """A target by its files.

    Args:
        name: `testbed`, or what `from_pretrained` takes.
        config: its text config of transformers.
        parameters: counted without loading them.
    """

    name: str
    config: Any
    parameters: int

    @property
    def vocab(self) -> int:
        """Rows of the embedding, padding included; the drafter's are as many."""
        return int(self.config.vocab_size)

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        c = self.config
        return int(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)


@contextmanager
def _readable(name: str) -> Generator[None, None, None]:
    """Whatever transformers says of a checkpoint that it cannot read, in one line."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        first = str(error).strip().splitlines()
        raise ConfigError(
            f"model {name!r} cannot be loaded: {first[0] if first else type(error).__name__}",
            accepted="testbed, a checkpoint folder, or an id that transformers can find",
        ) from error


def read_target(name: str) -> Target:
    """Read a target's config and count its parameters; no weight is loaded.

    Raises:
        ConfigError: there is no such checkpoint, or it has no vocabulary.
    """
    if name == "testbed":
        from remnant.testbed.model import testbed_config

        config = testbed_config()
    else:
        with _readable(name):
            config = hf().AutoConfig.from_pretrained(name).get_text_config()
    if not getattr(config, "vocab_size", 0):
        raise ConfigError(f"model {name!r} has no vocabulary", accepted="a language model")
    return Target(name, config, _parameters(name, config))


def _parameters(name: str, config: Any) -> int:
    with _readable(name), torch.device("meta"):
        model: Any = hf().AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())


def load_tokenizer(target: Target) -> Any:
    """The target's tokenizer, which becomes the drafter's.

    Raises:
        ConfigError: it makes ids that the model has no row for.
    """
    if target.name == "testbed":
        from remnant.testbed.model import load

        return load()[1]
    with _readable(target.name):
        tokenizer = hf().AutoTokenizer.from_pretrained(target.name)
    if len(tokenizer) > target.vocab:
        raise ConfigError(
            f"a tokenizer of {len(tokenizer)} tokens for a model of {target.vocab}",
            accepted="at most as many tokens as rows of the embedding",
            do="give the tokenizer that the model was trained with, or resize the model's embedding and train it",
        )
    return tokenizer


def load_model(name: str, device: str) -> Any:
    """Load weights, in eval mode and without gradients; bfloat16 on a GPU, float32 else."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    if name == "testbed":
        from remnant.testbed.model import load

        model = load(dtype, device)[0]
    else:
        with _readable(name):
            model = hf().AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True)
            model = model.to(device).eval()
    return model.requires_grad_(False)


def stops(model: Any, tokenizer: Any) -> Tensor:
    """`[n]` int64, the ids that end a text: what generation would stop at, else the tokenizer's `eos`."""
    generation = getattr(model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = getattr(tokenizer, "eos_token_id", None)
    ids = [] if found is None else [found] if isinstance(found, int) else list(found)
    return torch.tensor(sorted(set(ids)), dtype=torch.int64)
