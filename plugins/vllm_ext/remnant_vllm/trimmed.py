"""Draft models with a trimmed head, for `"method": "draft_model"`: a full embedding, fewer rows of logits.

    vllm serve MODEL --speculative-config \
        '{"method": "draft_model", "model": "drafter-8k", "num_speculative_tokens": 3}'

where `drafter-8k` was written by `remnant trim-vocab`. Logits come back over the whole vocabulary with minus infinity
outside the kept tokens, so that vLLM's rejection sampling stays exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.speculative.vocab_checkpoint import trimmed_map
from remnant.speculative.vocab_map import VocabMap
from remnant_vllm._compat import models

__all__ = [
    "RemnantTrimmedLlamaForCausalLM",
    "RemnantTrimmedMistralForCausalLM",
    "RemnantTrimmedQwen2ForCausalLM",
    "RemnantTrimmedQwen3ForCausalLM",
]

_TABLES = ("d2t", "t2d")

if TYPE_CHECKING:
    _Base: Any = nn.Module
else:
    _Base = object


class TrimmedHead(_Base):
    """Stands before a model class of vLLM and gives it a head of `draft_vocab_size` rows."""

    config: Any
    lm_head: Any
    logits_processor: Any
    kept: Tensor
    draft_id_to_target_id: Tensor

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        """Read and check the map, then build the model; no weight is loaded before.

        Raises:
            ConfigError: the map is missing or inconsistent.
        """
        folder, config = Path(vllm_config.model_config.model), vllm_config.model_config.hf_config
        k, size = getattr(config, "draft_vocab_size", None), config.vocab_size
        if not isinstance(k, int) or not 1 <= k < size:
            given = f"draft_vocab_size {k!r} with a vocabulary of {size}"
            raise ConfigError(given, accepted=f"1 to {size - 1}", do="trim the model again, with remnant trim-vocab")
        known = trimmed_map(folder) if folder.is_dir() else None
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if models.get_pp_group().is_last_rank:
            self._shrink(k, vllm_config, prefix)
        device = self.model.embed_tokens.weight.device
        self.register_buffer("kept", torch.arange(k, device=device), persistent=False)
        self.register_buffer("draft_id_to_target_id", torch.zeros_like(self.kept), persistent=False)
        self._mapped = known is not None
        if known is not None:
            self._use(known)

    def _shrink(self, k: int, vllm_config: Any, prefix: str) -> None:
        """Put the smaller head in the place of the one that the base has made."""
        made = self.logits_processor
        self.lm_head = models.ParallelLMHead(
            k,
            self.config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=models.maybe_prefix(prefix, "lm_head"),
        )
        self.logits_processor = models.LogitsProcessor(k, scale=made.scale, soft_cap=made.soft_cap)

    def _use(self, vmap: VocabMap) -> None:
        if vmap.k != len(self.kept) or vmap.vocab_size != self.config.vocab_size:
            given = f"a map of {vmap.k} of {vmap.vocab_size} tokens"
            raise ConfigError(given, accepted=f"{len(self.kept)} of {self.config.vocab_size}, as config.json says")
        self.kept.copy_(vmap.keep)
        self.draft_id_to_target_id.copy_(vmap.to_tensors()["d2t"])

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits `[N, V]`, minus infinity wherever a token is not kept; None where another rank has them."""
        logits = self.logits_processor(self.lm_head, hidden_states)
        if logits is None:
            return None
        full = logits.new_full((*logits.shape[:-1], self.config.vocab_size), -torch.inf)
        return full.index_copy_(-1, self.kept, logits)

    def compute_logits_local(self, hidden_states: Tensor) -> Tensor:
        """Refused: a rank's part of the rows is no part of the vocabulary.

        Raises:
            UnsupportedPolicy: always.
        """
        raise UnsupportedPolicy(
            "batch-sharded sampling from a model with a trimmed head",
            accepted="such a model as a drafter",
            do="serve the untrimmed model",
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load everything but the tables, which are read here where the folder was not at hand before.

        Raises:
            ConfigError: the map is missing or inconsistent.
        """
        tables: dict[str, Tensor] = {}

        def rest() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                if name in _TABLES:
                    tables[name] = tensor
                else:
                    yield name, tensor

        loaded = super().load_weights(rest())
        if not self._mapped:
            self._use(VocabMap.from_tensors(tables, self.config.vocab_size))
        return loaded


class RemnantTrimmedLlamaForCausalLM(TrimmedHead, models.LlamaForCausalLM):
    """Llama with a trimmed head."""


class RemnantTrimmedMistralForCausalLM(TrimmedHead, models.MistralForCausalLM):
    """Mistral with a trimmed head."""


class RemnantTrimmedQwen2ForCausalLM(TrimmedHead, models.Qwen2ForCausalLM):
    """Qwen2 with a trimmed head."""


class RemnantTrimmedQwen3ForCausalLM(TrimmedHead, models.Qwen3ForCausalLM):
    """Qwen3 with a trimmed head."""
