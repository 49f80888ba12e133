"""The scheduler's half of the KV connector: what may be loaded, what may be saved, and who waits for an answer.

It never promises a block that is not in the memory of every worker at that moment. Where worker and scheduler share a
process it asks the store itself; else it sends a question with one step and has the answer with a later one, and vLLM
lets the request wait.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from remnant_vllm.blockstore import BlockStore, Chain, Leased, StoreOptions, stamp

__all__ = ["Desk", "LocalDesk", "Move", "Question", "RemoteDesk", "SchedulerSide"]


@dataclass(frozen=True)
class Move:
    """Blocks to copy in one direction.

    Attributes:
        request: id of the request.
        keys: one per block.
        ids: per KV group, one block id per key.
    """

    request: str
    keys: list[bytes]
    ids: list[list[int]]


@dataclass(frozen=True)
class Question:
    """Which of these blocks do you have? Keep them in memory.

    Attributes:
        request: who wants them, and the name of the lease.
        first: place of the first key in the request.
        keys: of consecutive blocks.
    """

    request: str
    first: int
    keys: list[bytes]


class Desk(Protocol):
    """Where the scheduler asks for blocks."""

    def ask(self, question: Question) -> Leased | None:
        """How many of the leading blocks are held for the request; None while that is not known yet."""
        ...

    def end(self, request: str) -> None:
        """The request does not want its blocks any more."""
        ...


class LocalDesk:
    """Asks a store in this process."""

    def __init__(self, store: BlockStore) -> None:
        """See the class."""
        self._store = store

    def ask(self, question: Question) -> Leased:
        """See `Desk`."""
        return self._store.lease(question.request, question.keys)

    def end(self, request: str) -> None:
        """See `Desk`."""
        self._store.release(request)


class RemoteDesk:
    """Asks workers in other processes, by way of what scheduler and workers send each other with every step.

    Args:
        workers: how many must have a block.

    Attributes:
        questions: to be sent with the next step.
        ended: requests whose leases the workers are to end with the next step.
    """

    def __init__(self, workers: int) -> None:
        """See the class."""
        self.workers = workers
        self.questions: list[Question] = []
        self.ended: list[str] = []
        self._asked: dict[str, Question] = {}
        self._answers: dict[str, Leased] = {}

    def ask(self, question: Question) -> Leased | None:
        """See `Desk`; an answer may start earlier than what is asked for now, and is cut to fit."""
        known = self._asked.get(question.request)
        if known is None:
            self._asked[question.request] = question
            self.questions.append(question)
            return None
        answer = self._answers.get(question.request)
        if answer is None:
            return None
        skipped = question.first - known.first
        blocks = min(answer.blocks - skipped, len(question.keys)) if skipped >= 0 else 0
        return Leased(max(0, blocks), min(answer.from_disk, max(0, blocks)))

    def end(self, request: str) -> None:
        """See `Desk`."""
        if self._asked.pop(request, None) is None:
            return
        self._answers.pop(request, None)
        self.questions = [question for question in self.questions if question.request != request]
        self.ended.append(request)

    def loaded(self, request: str) -> None:
        """The workers end this lease themselves, after the load that they are told of."""
        self._asked.pop(request, None)
        self._answers.pop(request, None)

    def answer(self, answers: dict[str, Leased], workers: int) -> None:
        """Take answers in; one that not all workers gave counts as none having the blocks."""
        for request, leased in answers.items():
            if request in self._asked:
                self._answers[request] = leased if workers == self.workers else Leased(0, 0)

    def take(self) -> tuple[list[Question], list[str]]:
        """What the workers are to be told; told once."""
        news = self.questions, self.ended
        self.questions, self.ended = [], []
        return news


@dataclass
class _Tracked:
    request: Any
    chain: Chain
    saved: int = 0
    first: int = 0
    leased: Leased = field(default=Leased(0, 0))


class SchedulerSide:
    """Decides about requests of vLLM.

    Args:
        specs: specification of every KV group; one that evicts brings its `settings`.
        block_size: tokens per block, the same in all groups.
        options: of the store.
        loads: whether this engine may read blocks.
        saves: whether it may write blocks.
    """

    def __init__(self, specs: Sequence[Any], block_size: int, options: StoreOptions, loads: bool, saves: bool) -> None:
        """See the class."""
        self.specs, self.block_size, self.loads, self.saves = list(specs), block_size, loads, saves
        self.desk: Desk | None = None
        self._namespace = f"prefix/{options.namespace}"
        self._tracked: dict[str, _Tracked] = {}
        self._moves: list[Move] = []
        self._stamps: dict[tuple[str, int], list[tuple[str, int, int]]] = {}

    def matched(self, request: Any, computed: int) -> int | None:
        """Tokens beyond `computed` that are held ready for a request; None while the workers look.

        Args:
            request: vLLM's request.
            computed: tokens that vLLM has already, a multiple of the block size.
        """
        assert self.desk is not None
        if not self.loads or request.skip_reading_prefix_cache or not _plain(request) or computed % self.block_size:
            return 0
        first, end = computed // self.block_size, self._reusable(request)
        if end <= first:
            return 0
        tracked = self._track(request)
        keys = self._keys(tracked, end)[first:]
        leased = self.desk.ask(Question(request.request_id, first, keys))
        if leased is None:
            return None
        tracked.first, tracked.leased = first, leased
        return leased.blocks * self.block_size

    def allocated(self, request: Any, ids: Sequence[Sequence[int]], tokens: int) -> None:
        """vLLM has made room for a request and loads `tokens` of what was held ready for it, or none."""
        if not _plain(request):
            return
        tracked = self._track(request)
        if not tokens:
            self._end(request.request_id)
            return
        blocks = slice(tracked.first, tracked.first + tokens // self.block_size)
        self._moves.append(Move(request.request_id, tracked.chain.keys[blocks], [list(group[blocks]) for group in ids]))
        if isinstance(self.desk, RemoteDesk):
            self.desk.loaded(request.request_id)

    def from_disk(self, request: Any, tokens: int) -> int:
        """How many of the tokens that a request loads were read from disk."""
        tracked = self._tracked.get(request.request_id)
        return min(tokens, tracked.leased.from_disk * self.block_size) if tracked is not None else 0

    def take_loads(self) -> list[Move]:
        """What is to be loaded with this step; told once."""
        moves, self._moves = self._moves, []
        return moves

    def plan_saves(self, scheduled: dict[str, int], block_ids: Any) -> list[Move]:
        """What this step completes and is worth keeping.

        Args:
            scheduled: request id -> tokens of this step.
            block_ids: request id -> block ids per group, or None.
        """
        if not self.saves:
            return []
        moves = (self._save(self._tracked.get(name), tokens, block_ids) for name, tokens in scheduled.items())
        return [move for move in moves if move is not None]

    def _save(self, tracked: _Tracked | None, scheduled: int, block_ids: Any) -> Move | None:
        if tracked is None:
            return None
        request = tracked.request
        # Drafts lie beyond the known tokens, so what lies before has its final keys after this step at the latest.
        reached = min(request.num_computed_tokens + scheduled, request.num_tokens)
        stable = self._stable(request)
        end = (reached if stable is None else min(reached, stable)) // self.block_size
        if end <= tracked.saved:
            return None
        ids = block_ids(request.request_id)
        if ids is None:
            return None
        first, tracked.saved = tracked.saved, end
        keys = self._keys(tracked, end)
        # A block that vLLM has given back since is its null block.
        sound = [i for i in range(first, end) if all(i < len(group) and group[i] for group in ids)]
        if not sound:
            return None
        return Move(request.request_id, [keys[i] for i in sound], [[group[i] for i in sound] for group in ids])

    def finished(self, request_id: str) -> None:
        """Forget a request and what is held for it."""
        self._end(request_id)
        self._tracked.pop(request_id, None)

    def reset(self) -> None:
        """Never again use what was stored up to now, nor store under the same names.

        vLLM asks for this when weights have changed: blocks of the new weights must not be found by an engine that
        has the old ones, nor the other way round.
        """
        self._namespace = f"{self._namespace}/{uuid.uuid4().hex}"
        for name in list(self._tracked):
            self.finished(name)
        self._moves.clear()

    def _end(self, request_id: str) -> None:
        if self.desk is not None:
            self.desk.end(request_id)

    def _reusable(self, request: Any) -> int:
        """Blocks that may be loaded; at least one token is left to compute, and whatever a policy must see."""
        tokens = request.num_tokens - 1
        for settings in self._settings(request):
            tokens = min(tokens, settings.reusable(request.num_prompt_tokens, self.block_size))
        return tokens // self.block_size

    def _stable(self, request: Any) -> int | None:
        """Tokens whose blocks stay as they are; None if all do."""
        limits = [settings.stable(request.num_prompt_tokens, self.block_size) for settings in self._settings(request)]
        return min((limit for limit in limits if limit is not None), default=None)

    def _settings(self, request: Any) -> list[Any]:
        """What each group that evicts does to this request."""
        params = request.sampling_params
        extra = params.extra_args if params is not None else None
        specs = [spec for spec in self.specs if hasattr(spec, "remnant")]
        return [spec.settings(request.num_prompt_tokens, spec.remnant.for_request(extra)) for spec in specs]

    def _track(self, request: Any) -> _Tracked:
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.request is not request:
            tracked = _Tracked(request, Chain(self._namespace, self.block_size, self._labels(request)))
            self._tracked[request.request_id] = tracked
        return tracked

    def _keys(self, tracked: _Tracked, blocks: int) -> list[bytes]:
        request = tracked.request
        pictures = [
            (feature.identifier, feature.mm_position.offset, feature.mm_position.length)
            for feature in request.mm_features
        ]

        def labels(start: int, end: int) -> list[tuple[str, str, str]]:
            inside = [p for p in pictures if p[1] < end and p[1] + p[2] > start]
            return [("mm", str(identifier), str(offset - start)) for identifier, offset, _ in inside]

        return tracked.chain.grow(request.all_token_ids, blocks, labels if pictures else None)

    def _labels(self, request: Any) -> list[tuple[str, ...]]:
        labels: list[tuple[str, ...]] = []
        adapter = request.lora_request
        if adapter is not None:
            path = str(adapter.lora_path)
            loaded = path, adapter.lora_int_id
            if loaded not in self._stamps:  # later changes of the files do not reach the engine's copy
                self._stamps[loaded] = stamp(path)
            labels.append(("lora", str(adapter.lora_name), path, repr(self._stamps[loaded])))
        if request.cache_salt:
            labels.append(("salt", str(request.cache_salt)))
        return labels


def _plain(request: Any) -> bool:
    """Whether token ids say all: not for embeddings as prompts, nor for prompts that still grow."""
    return request.prompt_embeds is None and request.prompt_token_ids is not None and not request.resumable
