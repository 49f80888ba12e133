"""What the stock loop cannot do by our own engine: batches, trees, tilts and plans, in the form of `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from remnant.errors import ConfigError
from remnant.speculative.drafter import Draft, Drafter, Sampler
from remnant.speculative.engine import generate
from remnant.speculative.guard import GuardedTarget
from remnant.speculative.stats import SpecStats
from remnant.speculative.target import Target
from remnant_hf._checked import checked
from remnant_hf._limits import refuse_inputs
from remnant_hf._proxy import Call
from remnant_hf._sampler import HostSampler
from remnant_hf._target import ModelTarget
from remnant_hf.cache import RemnantCache

__all__ = ["engine_loop", "refuse_outputs"]


class Bounded:
    """A drafter that ends its drafts before the next eviction of the row's cache.

    Args:
        drafter: whose drafts they are.
        target: knows the caches.
        tilted: a draft of one token is asked for even where there is no room, for its logits.
    """

    name: ClassVar[str] = "bounded"

    def __init__(self, drafter: Drafter, target: ModelTarget, tilted: bool) -> None:
        """See the class."""
        self._drafter, self.target, self._least = drafter, target, int(tilted)
        self.vocab_size = drafter.vocab_size
        self.weight_bytes = getattr(drafter, "weight_bytes", 0)

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Begin."""
        self._drafter.reset(prompts)

    def propose(self, limits: Sequence[int], sampler: Sampler | None = None) -> list[Draft]:
        """Guess within the room that is left."""
        rooms = [self.target.room(row) for row in range(len(limits))]
        asked = [min(limit, max(room, self._least)) for limit, room in zip(limits, rooms, strict=True)]
        drafts = self._drafter.propose(asked, sampler)
        drafts = checked(drafts, len(limits), self._drafter.name, self.target.vocab_size)
        # A tree is not cut here: over a cache that evicts it is refused by the target.
        return [d if d.tree is not None else d.first(room) for d, room in zip(drafts, rooms, strict=True)]

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Learn."""
        self._drafter.observe(emitted)

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back."""
        self._drafter.rollback(counts)

    def nbytes(self) -> int:
        """Bytes that the drafter holds, as far as it says so."""
        own = getattr(self._drafter, "nbytes", None)
        return int(own()) if own else 0


def engine_loop(
    call: Call,
    drafter: Drafter,
    num_draft: int,
    sampler: HostSampler,
    plan: Any,
    tilt: Any,
    lazy_logits: bool | None = None,
) -> tuple[Any, SpecStats]:
    """Run our engine for one `generate` call.

    Args:
        call: what is generated; any number of rows.
        drafter: proposes.
        num_draft: most tokens per draft, without a plan.
        sampler: the distribution that is sampled from.
        plan: see `remnant.speculative.plan`.
        tilt: see `remnant.speculative.generate`.
        lazy_logits: see `remnant.speculative.generate`.

    Returns:
        Ids `[B, S]`, or a `GenerateDecoderOnlyOutput` with ids and, of one row, the cache; and the counts.
    """
    refuse_outputs(call.config)
    prompts, config = call.prompts(), call.config
    refuse_inputs(call.kwargs, prompts, call.real())
    rows, width = len(prompts), call.input_ids.shape[1]
    new = config.max_length - width
    target = ModelTarget(call.model, _template(call.cache, prompts), config.prefill_chunk_size)
    bounded = Bounded(drafter, target, tilt is not None)
    guarded: Target = target
    if plan is not None:
        guarded = GuardedTarget(target, plan)
        guarded.guard.admit([len(ids) for ids in prompts], new)
    if rows > 1 or len(prompts[0]) != width:
        sampler.prefix = [row[: width - len(ids)] for row, ids in zip(call.input_ids, prompts, strict=True)]
    streamer = call.streamer
    try:
        out = generate(
            guarded, bounded, prompts, new, sampler, plan, tilt,
            num_draft=num_draft, eos=_ends(config), stop=_stop(call),
            on_tokens=None if streamer is None else lambda _, tokens: streamer.put(tokens.cpu()),
            lazy_logits=lazy_logits,
        )  # fmt: skip
    finally:
        target.end()
    if streamer is not None:
        streamer.end()
    ids = _rectangle(call, out.ids)
    if not config.return_dict_in_generate:
        return ids, out.stats
    return GenerateDecoderOnlyOutput(sequences=ids, past_key_values=call.cache if rows == 1 else None), out.stats  # pyright: ignore[reportArgumentType]


def refuse_outputs(config: Any) -> None:
    """Refuse outputs that our engine does not keep.

    Raises:
        ConfigError: scores or logits of every step.
    """
    if config.return_dict_in_generate and (config.output_scores or config.output_logits):
        raise ConfigError(
            "output_scores or output_logits with a batch, a tree, a tilt, a plan or lazy logits",
            accepted="one row and chains",
        )


def _template(cache: Any, prompts: list[Tensor]) -> Any:
    """The cache of one row. That of a batch is the pattern for one per row, and itself stays empty."""
    rows = len(prompts)
    if rows == 1 and cache.get_seq_length() >= len(prompts[0]):
        raise ConfigError(
            f"a prompt of {len(prompts[0])} tokens over a cache that holds {cache.get_seq_length()}",
            accepted="the whole conversation with something new behind it",
            do="pass the earlier turns too, or another cache",
        )
    if rows > 1 and (cache.get_seq_length() or getattr(cache, "offloading", False)):
        raise ConfigError(
            f"{rows} rows over a cache that holds {cache.get_seq_length()} tokens or is offloaded",
            accepted="an empty cache",
            do="generate row by row to go on with a conversation",
        )
    return cache if rows == 1 or isinstance(cache, RemnantCache) else None


def _ends(config: Any) -> list[int]:
    ends = getattr(config, "_eos_token_tensor", None)
    return [] if ends is None else ends.flatten().tolist()


def _stop(call: Call) -> Any:
    """The user's criteria, asked about each row after each token."""
    known = MaxLengthCriteria | EosTokenCriteria
    criteria = StoppingCriteriaList(each for each in call.criteria if not isinstance(each, known))
    if not criteria:
        return None

    def stop(row: int, new: Tensor) -> bool:
        # A criterion may tell rows apart by their place, so every row has the text of the one that is asked about.
        text: Any = torch.cat([call.input_ids[row], new.to(call.input_ids.device)]).expand(len(call.input_ids), -1)
        return bool(criteria(text, None)[row])  # pyright: ignore[reportArgumentType]

    return stop


def _rectangle(call: Call, new: list[Tensor]) -> Tensor:
    """Prompts with what was emitted, padded behind rows that ended early."""
    pad = getattr(call.config, "_pad_token_tensor", None)
    out = call.input_ids.new_full((len(new), max(map(len, new))), 0 if pad is None else int(pad))
    for row, ids in enumerate(new):
        out[row, : len(ids)] = ids.to(out)
    return torch.cat([call.input_ids, out], 1)
