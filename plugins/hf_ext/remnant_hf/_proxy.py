"""The assisted loop of transformers with our drafter in it, on a model that is not touched."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from remnant.speculative.drafter import Drafter, Sampler
from remnant.speculative.stats import SpecStats
from remnant_hf._candidates import Candidates
from remnant_hf._refusals import vocab_size
from remnant_hf.layer import RemnantLayer

__all__ = ["Call", "stock_loop"]


@dataclass
class Call:
    """One `generate` call, as prepared by transformers.

    Args:
        model: the target.
        input_ids: `[B, S]` int64, padded on the left.
        processors: prepared logits processors.
        criteria: prepared stopping criteria.
        config: prepared generation configuration.
        kwargs: keyword arguments of the model, cache included.
        streamer: gets the tokens; None is none.
    """

    model: Any
    input_ids: Tensor
    processors: Any
    criteria: Any
    config: Any
    kwargs: dict[str, Any]
    streamer: Any = None

    @property
    def cache(self) -> Any:
        """The target's cache."""
        return self.kwargs["past_key_values"]

    def prompts(self) -> list[Tensor]:
        """Per row, the ids without padding."""
        return [ids[real] for ids, real in zip(self.input_ids, self.real(), strict=True)]

    def real(self) -> Tensor:
        """`[B, S]` bool: what is no padding."""
        mask = self.kwargs.get("attention_mask")
        if mask is None:
            return torch.ones_like(self.input_ids, dtype=torch.bool)
        return mask.bool().to(self.input_ids.device)


class Proxy:
    """Looks like the model, drafts by our drafter, and reads the prompt as plain `generate` does.

    The stock loop feeds the whole text in its first pass, whatever the cache holds already and however large the
    blocks should be; `_prefill` is what plain generation calls, so a second turn, blocks of a prompt and the first
    decision of a policy are the same with and without drafts.
    """

    def __init__(self, model: Any, candidates: Candidates, first_pass: Callable[[], Any], stats: SpecStats) -> None:
        self.__dict__.update(_model=model, _candidates=candidates, _first_pass=first_pass, _stats=stats)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _get_candidate_generator(self, **_: Any) -> Candidates:
        return self._candidates

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> Any:
        """Nothing for the first pass, which prepares its own."""
        if is_first_iteration:
            return {}
        return self._model.prepare_inputs_for_generation(*args, is_first_iteration=False, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One pass of the model."""
        first = self.__dict__.pop("_first_pass", None)
        if first is not None:
            return first()
        start = time.perf_counter()
        outputs = self._model(*args, **kwargs)
        self._stats.target_seconds += time.perf_counter() - start
        return outputs


def _read_prompt(call: Call) -> Any:
    """The first pass of plain generation. Nothing is drafted yet, so no layer of ours waits with its decision."""
    ours = [layer for layer in call.cache.layers if isinstance(layer, RemnantLayer)]
    for layer in ours:
        layer.record_past = False
    outputs = call.model._prefill(call.input_ids, call.config, dict(call.kwargs))
    for layer in ours:
        layer.record_past = True
    return outputs


def stock_loop(call: Call, drafter: Drafter, num_draft: int, sampler: Sampler, stats: SpecStats) -> Any:
    """Run the model's own assisted loop with a drafter; one row, chains only.

    Args:
        call: what is generated.
        drafter: proposes.
        num_draft: most tokens per draft.
        sampler: as for `Drafter.propose`.
        stats: filled.

    Returns:
        What the stock loop returns: ids, or a `GenerateDecoderOnlyOutput`.
    """
    model, config = call.model, call.config
    candidates = Candidates(
        drafter, call.prompts()[0], num_draft, config.max_length, call.cache, sampler, call.criteria,
        vocab_size(model), stats,
    )  # fmt: skip
    proxy = Proxy(model, candidates, partial(_read_prompt, call), stats)
    return type(model)._assisted_decoding(
        proxy,
        call.input_ids,
        logits_processor=call.processors,
        stopping_criteria=call.criteria,
        generation_config=config,
        streamer=call.streamer,
        **call.kwargs,
    )
