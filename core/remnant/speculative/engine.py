"""The loop: draft, check in one pass, accept, give back the rest; over any target and any drafter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative._lazy import LazyVerifier, wanted
from remnant.speculative._text import Stop, Text, as_rows, room
from remnant.speculative._verify import Tilt, Verifier
from remnant.speculative.drafter import Draft, Drafter
from remnant.speculative.drafter import Sampler as AnySampler
from remnant.speculative.sampling import Sampler
from remnant.speculative.stats import SpecStats
from remnant.speculative.target import Target, deferred

__all__ = ["Output", "generate"]


class Output(NamedTuple):
    """What a run gave.

    Args:
        ids: per row `[n]` int64, new tokens without the prompt, an end token included.
        stats: counts of all rows together.
    """

    ids: list[Tensor]
    stats: SpecStats


class Bounds(Protocol):
    """What the loop reads of a plan: nodes of a draft with the root, its depth, and the longest text in tokens."""

    @property
    def n(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def L_max(self) -> int: ...


def generate(
    target: Target,
    drafter: Drafter | None,
    prompt_ids: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    sampler: AnySampler | None = None,
    plan: Bounds | None = None,
    tilt: Tilt | None = None,
    *,
    mask: Tensor | None = None,
    num_draft: int = 4,
    eos: int | Iterable[int] = (),
    stop: Stop | None = None,
    on_tokens: Callable[[int, Tensor], None] | None = None,
    history: Literal["all", "generated"] = "all",
    drop_finished: bool = True,
    lazy_logits: bool | None = None,
) -> Output:
    """Decode with drafts; without a tilt the output is what the target alone would give.

    Greedy output is identical to plain greedy decoding, sampled output is distributed as plain sampling.

    Args:
        target: the model and its cache; begun anew.
        drafter: where drafts come from; None decodes plainly through the same loop.
        prompt_ids: `[B, L]` int64 with `mask`, or per row `[T]`.
        max_new_tokens: most tokens per row.
        sampler: how logits become probabilities; None is greedy.
        plan: bounds for draft and text, from `remnant.speculative.plan`; with fewer than two nodes nothing is drafted.
        tilt: `(z, zq) -> z~`, all `[B, T, V]` logits: sample from the target's logits z mixed with the drafter's zq.
            This changes the output's distribution to the tilted one. Needs chains that carry their logits.
        mask: `[B, L]`, nonzero at real tokens.
        num_draft: most drafted tokens per block, without a plan; a plan's `n - 1` replaces it.
        eos: tokens that end a row; kept in the output.
        stop: `(row, new tokens so far) -> bool`, asked after every token.
        on_tokens: `(row, [n] tokens)`, called as soon as tokens are final.
        history: what processors of the target see: the whole text, or what was generated. The latter where drafter
            and target read different prompts.
        drop_finished: take finished rows out of the target's batch. False keeps their cache for a later turn.
        lazy_logits: compute the target's head only where the walk over the draft comes by, level by level: one column
            of logits per row instead of all. Greedy tokens stay the same, sampled ones too where the head gives the
            same bits for one column as for many; their distribution in any case. None does what the plan counts on.

    Returns:
        Output with the new tokens per row, and the counts.

    Raises:
        ConfigError: a drafter whose vocabulary is larger than the target's, a bound that leaves no room, drafts that
            do not suit a tilt, or lazy logits of a target that has none; the last before anything is read.
        ShapeError: prompts that are no int64 rows.

    Source: Leviathan et al. 2023, arXiv 2211.17192. Differs: rows of a batch accept different lengths.
    Example: generate(target, ModelDrafter(small), ids, 100, Sampler(0.7), eos=2).stats.block_efficiency
    """
    prompts = as_rows(prompt_ids, mask)
    tilt = None if getattr(tilt, "lossless", False) else tilt
    _check(target, drafter, num_draft, tilt)
    admit: Any = getattr(plan, "admit", None)
    if admit is not None:  # a plan that counts rows refuses more of them before the first is read
        admit([len(prompt) for prompt in prompts])
    if plan is not None and plan.n < 2:
        drafter = None  # a plan without drafts has no room for what the drafter would keep
    rooms = room(prompts, max_new_tokens, None if plan is None else plan.L_max)
    width = num_draft if plan is None else plan.n - 1
    lazy = wanted(plan, lazy_logits, tilt)
    if lazy:
        deferred(target)
    logits = target.prefill(prompts)
    text = Text(prompts, rooms, [eos] if isinstance(eos, int) else eos, stop, logits.device)
    kind = LazyVerifier if lazy else Verifier
    verifier = kind(target, text, sampler or Sampler(temperature=0.0), tilt, history == "generated")
    run = _Run(verifier, drafter, width, None if plan is None else plan.depth, on_tokens, drop_finished)
    run.begin(prompts, logits)
    del logits  # a row of the vocabulary per prompt
    while not all(text.done):
        run.block()
    return Output([text.new(row) for row in range(len(text))], run.close())


class _Run:
    """One call of `generate`; `rows` are the rows that the target still holds."""

    def __init__(
        self,
        verifier: Verifier,
        drafter: Drafter | None,
        width: int,
        depth: int | None,
        on_tokens: Callable[[int, Tensor], None] | None,
        drop: bool,
    ) -> None:
        self._verifier, self._target, self._text = verifier, verifier.target, verifier.text
        self._drafter, self._width, self._depth, self._on_tokens, self._drop = drafter, width, depth, on_tokens, drop
        self.rows = list(range(len(self._text)))
        self._stats = SpecStats(target_bytes=self._target.weight_bytes, draft_bytes=getattr(drafter, "weight_bytes", 0))

    def begin(self, prompts: list[Tensor], logits: Tensor) -> None:
        """Give the drafter the prompts and emit the first token of each row."""
        drafts = None
        if self._drafter is not None:
            begin = perf_counter()
            self._drafter.reset(prompts)
            self._stats.draft_seconds += perf_counter() - begin
            if self._verifier.tilt is not None:
                drafts = self._propose([1] * len(prompts))
        self._watch()
        tokens = self._verifier.first(logits, drafts)
        self._settle([self._text.append(row, [token]) for row, token in enumerate(tokens)])

    def block(self) -> None:
        """Draft, check in one pass, and give back what was not accepted."""
        drafts = self._drafts()
        check = self._verifier.trees if any(draft.tree is not None for draft in drafts) else self._verifier.chains
        verdicts = check(self.rows, drafts)
        self._watch()
        emitted: list[list[int]] = [[] for _ in range(len(self._text))]
        keep: list[list[int]] = []
        for row, draft, verdict in zip(self.rows, drafts, verdicts, strict=True):
            going = not self._text.done[row]
            emitted[row] = tokens = self._text.append(row, verdict.tokens)
            # Of n emitted tokens the first n - 1 were columns of the pass, behind the token that was emitted before.
            keep.append([0, *verdict.columns[: len(tokens) - 1]] if going else [])
            if going:
                self._stats.block(len(draft), len(verdict.columns), len(tokens), verdict.depth)
        self._target.commit(_table(keep))
        self._settle(emitted)

    def close(self) -> SpecStats:
        """The counts."""
        self._stats.target_seconds = self._verifier.seconds
        return self._stats

    def _drafts(self) -> list[Draft]:
        """A draft per row of the target, none longer than the row and the plan allow."""
        limits = [max(min(self._width, self._text.left(row) - 1), 0) for row in range(len(self._text))]
        tilted = self._verifier.tilt is not None
        # A tilt needs the drafter's logits even for a token that no draft can precede.
        asked = [max(limit, int(tilted and not done)) for limit, done in zip(limits, self._text.done, strict=True)]
        if self._drafter is None or not any(asked):
            return [_NOTHING] * len(self.rows)
        drafts = self._propose(asked)
        return [self._bounded(drafts[row], limits[row]) for row in self.rows]

    def _propose(self, limits: list[int]) -> list[Draft]:
        assert self._drafter is not None
        begin = perf_counter()
        drafts = self._drafter.propose(limits, self._verifier.sampler)
        self._stats.draft_seconds += perf_counter() - begin
        return drafts

    def _bounded(self, draft: Draft, limit: int) -> Draft:
        tree = draft.tree
        if tree is None:
            return draft.first(limit if self._depth is None else min(limit, self._depth))
        inside = torch.arange(len(tree), device=tree.ids.device) <= limit
        if self._depth is not None:
            inside &= tree.depth <= self._depth
        tree = tree if bool(inside.all()) else tree.prune(inside)
        return Draft(tree.ids[1:], tree=tree, mode=draft.mode)

    def _settle(self, emitted: list[list[int]]) -> None:
        """Tell everyone what was emitted, and drop the rows that ended."""
        news = [torch.tensor(tokens, dtype=torch.int64) for tokens in emitted]
        if self._drafter is not None:
            begin = perf_counter()
            self._drafter.observe(news)
            self._stats.draft_seconds += perf_counter() - begin
        going = [place for place, row in enumerate(self.rows) if not self._text.done[row]]
        if self._drop and 0 < len(going) < len(self.rows):
            self._target.select(torch.tensor(going))
            self.rows = [self.rows[place] for place in going]
        for row, tokens in enumerate(news):
            if self._on_tokens is not None and tokens.numel():
                self._on_tokens(row, tokens)

    def _watch(self) -> None:
        """Keep the largest sum of caches and logits that stood at once."""
        held = self._target.nbytes() + self._verifier.scratch
        own: Callable[[], int] | None = getattr(self._drafter, "nbytes", None)
        self._stats.peak_bytes = max(self._stats.peak_bytes, held + (own() if own else 0))


_NOTHING = Draft(torch.zeros(0, dtype=torch.int64))


def _table(rows: list[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int64)


def _check(target: Target, drafter: Drafter | None, num_draft: int, tilt: Tilt | None) -> None:
    known = None if drafter is None else drafter.vocab_size
    if known is not None and known > target.vocab_size:
        raise ConfigError(
            f"a drafter of {known} tokens for a target of {target.vocab_size}",
            accepted="a vocabulary that is the target's, or its beginning",
            do="use a drafter with the target's tokenizer",
        )
    if num_draft < 0:
        raise ConfigError(f"num_draft={num_draft}", accepted="0 or more")
    if tilt is not None and drafter is None:
        raise ConfigError("a tilt without a drafter", do="give a drafter that keeps its logits")
