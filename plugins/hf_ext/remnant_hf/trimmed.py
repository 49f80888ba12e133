"""A draft model with a trimmed head, in transformers: its logits are over the whole vocabulary, minus infinity outside.

    draft = load_trimmed("drafter-8k")
    target.generate(**inputs, custom_generate=remnant_hf.speculate(draft))

Whatever drafts with an ordinary model drafts with this one; the target decides what is accepted, so the output is the
target's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.speculative.vocab_checkpoint import read_checkpoint
from remnant.speculative.vocab_map import VocabMap, trim_head
from remnant.speculative.vocab_names import TRIMMED, trimmed_name

__all__ = ["TrimmedHead", "load_trimmed", "trim_model"]


class TrimmedHead(nn.Linear):
    """An output layer of k rows whose logits `[..., V]` are minus infinity for every token that is not kept.

    Args:
        width: channels of the hidden states.
        vmap: which tokens the rows are of.
        bias: whether there is one.
    """

    def __init__(self, width: int, vmap: VocabMap, bias: bool = False, **kwargs: Any) -> None:
        """See the class."""
        super().__init__(width, vmap.k, bias=bias, **kwargs)
        self.vmap = vmap

    def forward(self, input: Tensor) -> Tensor:
        """Logits over the whole vocabulary: `[..., d]` -> `[..., V]`."""
        return self.vmap.scatter(super().forward(input))


def load_trimmed(folder: Path | str, **options: Any) -> Any:
    """Load a draft model that `remnant trim-vocab` wrote.

    Args:
        folder: of the checkpoint.
        options: of `from_pretrained`, such as `dtype` or `device_map`.

    Returns:
        A causal language model in eval mode, whose `save_pretrained` writes such a folder again.

    Raises:
        ConfigError: not such a checkpoint, or its map is missing or inconsistent; found before a weight is read.
    """
    checkpoint = read_checkpoint(folder)
    vmap = checkpoint.kept
    if checkpoint.kind == "eagle3":
        do = "serve it with vLLM, or trim a causal language model"
        raise UnsupportedPolicy(f"{checkpoint.folder.name} is an EAGLE-3 drafter, which transformers lacks", do=do)
    if vmap is None:
        given = f"{checkpoint.folder.name} keeps all {checkpoint.vocab_size} tokens"
        raise ConfigError(
            given, accepted="a model that remnant trim-vocab wrote", do="load it with AutoModelForCausalLM"
        )
    cls = _class(checkpoint.architecture, vmap)
    return cls.from_pretrained(str(checkpoint.folder), local_files_only=True, **options).eval()


def trim_model(model: Any, vmap: VocabMap) -> Any:
    """Trim a loaded model in place; for a folder that servers load as well, use `remnant trim-vocab`.

    Args:
        model: a causal language model of transformers with an ordinary head.
        vmap: which tokens it may propose from now on.

    Returns:
        The model.

    Raises:
        ConfigError: no head, or a quantised one.
        ShapeError: a head of another size than the map's vocabulary.
    """
    found = trim_head(model.get_output_embeddings(), vmap)
    head = TrimmedHead(found.in_features, vmap, found.bias is not None, device="meta", dtype=found.weight.dtype)
    head.weight, head.bias = found.weight, found.bias
    model.set_output_embeddings(head)
    model.config.tie_word_embeddings = False
    _mark(model, vmap, type(model).__name__)
    return model


def _mark(model: Any, vmap: VocabMap, architecture: str) -> None:
    """Put the tables and the size where checkpoints keep them."""
    for name, table in vmap.to_tensors().items():
        model.register_buffer(name, table)
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        model.register_forward_hook(_put_back)
    model.config.draft_vocab_size = vmap.k
    model.config.architectures = [trimmed_name(architecture)]


def _put_back(model: Any, _: Any, output: Any) -> Any:
    """A model that caps its logits has made numbers of the minus infinities."""
    if not isinstance(output, tuple):
        output.logits = output.logits.masked_fill(~model.t2d, float("-inf"))
        return output
    at = next(i for i, x in enumerate(output) if isinstance(x, Tensor) and x.dim() == 3)
    return (*output[:at], output[at].masked_fill(~model.t2d, float("-inf")), *output[at + 1 :])


def _class(architecture: str, vmap: VocabMap) -> type[Any]:
    """The model's own class with the smaller head; `from_pretrained` then finds every tensor where it expects it."""
    import transformers

    name = architecture.removeprefix(TRIMMED)
    base: Any = getattr(transformers, name, None)
    if base is None:
        raise ConfigError(f"architecture {architecture}", accepted="a causal language model of transformers")

    class Trimmed(base):
        _tied_weights_keys: Any = None

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            plain = self.get_output_embeddings()
            bias = getattr(plain, "bias", None) is not None
            head = TrimmedHead(plain.in_features, vmap, bias, device=plain.weight.device, dtype=plain.weight.dtype)
            self.set_output_embeddings(head)
            _mark(self, vmap, name)

    Trimmed.__name__ = Trimmed.__qualname__ = trimmed_name(name)
    return Trimmed
