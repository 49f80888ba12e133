"""`speculate`: drafting for `generate`, over any cache that can go back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from remnant.errors import ConfigError
from remnant.speculative._lazy import wanted
from remnant.speculative.drafter import Drafter
from remnant.speculative.guard import Guard
from remnant.speculative.stats import SpecStats
from remnant_hf import _refusals as refuse
from remnant_hf._engine import engine_loop
from remnant_hf._head import halves
from remnant_hf._proxy import Call, stock_loop
from remnant_hf._sampler import HostSampler
from remnant_hf._source import Source

if TYPE_CHECKING:
    from remnant.speculative.planner import Plan, Refusal
    from remnant.speculative.rapid import Tilt

__all__ = ["Speculation", "speculate"]


def speculate(
    drafter: str | Drafter | Any,
    num_draft: int = 4,
    *,
    tilt: Tilt | None = None,
    plan: Plan | Refusal | None = None,
    tree: bool = False,
    tokenizer: Any = None,
    drafter_tokenizer: Any = None,
    allow_larger: bool = False,
    generator: torch.Generator | None = None,
    lazy_logits: bool | None = None,
    **options: Any,
) -> Speculation:
    """Draft tokens, and let the model check several in one pass: `generate(..., custom_generate=speculate(...))`.

    Greedy output is that of `generate` without drafts, token for token, over any cache: a compressed one gives what it
    gives alone. Sampled output has the target's own distribution (not the same tokens for the same seed). Only `tilt`
    changes the distribution, and its modes say so.

    Pass a streamer as `stream_to=`, stop strings as `stop_strings=` with `tokenizer` given here: `generate` does not
    hand its own `streamer` and `tokenizer` to a `custom_generate`. Other stopping criteria are asked about drafted text
    too.

    Args:
        drafter: `"lookup"` or another name of `remnant.speculative.list_drafters()`; a causal language model with the
            target's vocabulary, trimmed or not; or any object of the `Drafter` protocol.
        num_draft: most tokens per draft, at least 1.
        tilt: moves the target's distribution towards the drafter's (RAPID); None leaves it alone.
        plan: a memory plan of `remnant.speculative.plan`, kept to at run time; it decides `num_draft`.
        tree: the drafter proposes trees.
        tokenizer: of the target; for stop strings.
        drafter_tokenizer: of the drafter, compared with `tokenizer` before anything is computed.
        allow_larger: accept a drafter model that is larger than its target.
        generator: draws drafts and samples; None uses torch's own.
        lazy_logits: run the model's output head only where the walk over a draft comes by: at most two rows of logits
            per row of the batch are held, instead of one per drafted token, for one more call of the head per accepted
            token. Greedy tokens are the same wherever the head gives one state the logits that it gives it among
            others, up to ties; sampling keeps its distribution. None does what the plan counts on.
        options: of the drafter, when it is given by name.

    Returns:
        A callable for `custom_generate=`; its `stats` are those of the last call.

    Raises:
        ConfigError: an option, drafter or vocabulary that is not accepted; options of a call are checked in the call,
            and so is a model whose head cannot be run apart, before anything is read or written.

    Source: Leviathan et al. 2023, arXiv 2211.17192.
    Example:
        drafts = speculate("lookup", num_draft=4)
        out = model.generate(**inputs, custom_generate=drafts, past_key_values=RemnantCache(model.config, budget=1024))
        drafts.stats.block_efficiency
    """
    return Speculation(
        drafter, num_draft, tilt, plan, tree, tokenizer, drafter_tokenizer, allow_larger, generator, lazy_logits,
        options,
    )  # fmt: skip


class Speculation:
    """What `speculate` returns: called by `generate`, once per call; may be used again and from several threads.

    Attributes:
        stats: counts of the last call that ended; empty before the first.
    """

    def __init__(
        self,
        drafter: Any,
        num_draft: int,
        tilt: Tilt | None,
        plan: Plan | Refusal | None,
        tree: bool,
        tokenizer: Any,
        drafter_tokenizer: Any,
        allow_larger: bool,
        generator: torch.Generator | None,
        lazy_logits: bool | None,
        options: dict[str, Any],
    ) -> None:
        """See `speculate`."""
        if type(num_draft) is not int or num_draft < 1:
            raise ConfigError(f"num_draft={num_draft!r}", accepted="an integer of at least 1, in tokens")
        if plan is not None:
            Guard(plan)  # a refusal says here how many bytes are missing
        self.lazy = wanted(plan, lazy_logits, None if getattr(tilt, "lossless", False) else tilt)
        refuse.refuse_tokenizers(tokenizer, drafter_tokenizer)
        self.num_draft, self.tilt, self.plan, self.tree, self.tokenizer = num_draft, tilt, plan, tree, tokenizer
        self.allow_larger, self.generator = allow_larger, generator
        self.one_tokenizer = drafter_tokenizer is not None
        self.source = Source(drafter, options)
        self.stats = SpecStats()

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        stream_to: Any = None,
        stop_strings: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Generate; the arguments are those that `generate` prepares.

        Raises:
            ConfigError: this model, drafter or option cannot be honoured.
            UnsupportedPolicy: the cache's policy cannot be drafted over.
        """
        refuse.refuse_model(model)
        refuse.refuse_call(model, generation_config, logits_processor, input_ids, kwargs)
        self.source.check(model, self.one_tokenizer, self.allow_larger, generation_config.max_length)
        if self.lazy:
            halves(model)
        criteria = self._criteria(stopping_criteria, stop_strings)
        call = Call(model, input_ids, logits_processor, criteria, generation_config, kwargs, stream_to)
        if stream_to is not None:
            stream_to.put(input_ids.cpu())
        with self.source.lend(self.tilt is not None) as drafter:
            out, self.stats = self._run(call, drafter)
        return out

    def _run(self, call: Call, drafter: Drafter) -> tuple[Any, SpecStats]:
        sampler = HostSampler(call.processors, not call.config.do_sample, self.generator)
        ours = self.tree or self.plan is not None or self.tilt is not None or self.generator is not None or self.lazy
        if ours or len(call.input_ids) > 1:
            return engine_loop(call, drafter, self.num_draft, sampler, self.plan, self.tilt, self.lazy)
        stats = SpecStats(target_bytes=refuse.parameter_bytes(call.model), draft_bytes=self.source.bytes)
        with _recording(call.cache):
            return stock_loop(call, drafter, self.num_draft, sampler, stats), stats

    def _criteria(self, criteria: Any, stop_strings: Any) -> Any:
        if stop_strings is None:
            return criteria
        if self.tokenizer is None:
            raise ConfigError("stop_strings without a tokenizer", do="speculate(..., tokenizer=tokenizer)")
        return StoppingCriteriaList([*criteria, StopStringCriteria(self.tokenizer, stop_strings)])


@contextmanager
def _recording(cache: Any) -> Iterator[None]:
    """Let a cache go back while drafts are checked, and evict at once again afterwards."""
    cache.activate_past_recording()
    try:
        yield
    finally:
        for layer in cache.layers:
            if hasattr(layer, "record_past"):
                layer.record_past = False
