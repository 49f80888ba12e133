"""What a cache cannot see by itself: token ids, and the tree that they spell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv.tasktree import PruneQueue, TaskTree
from remnant_hf._feed import remember
from remnant_hf._text import Detokenizer

__all__ = ["Hooks", "hooks"]


class _Row:
    """One sequence: its text, its tree, its finished lists."""

    def __init__(self, tokenizer: Any, buffer: int) -> None:
        self.text = Detokenizer(tokenizer)
        self.tree = TaskTree()
        self.queue = PruneQueue(buffer)


class _Watcher:
    """Follows the ids of one `generate` call and tells the cache."""

    def __init__(self, cache: Any, tokenizer: Any, start: int | None) -> None:
        self.cache = cache
        self.tokenizer = tokenizer
        self.start = start
        self.rows: list[_Row] = []
        self.offset = 0
        self.read = 0
        self.last: Tensor | None = None

    @property
    def parses(self) -> bool:
        return "events" in self.cache.policy.needs and self.tokenizer is not None

    def before(self, input_ids: Tensor) -> None:
        """After a forward pass: the cache has seen all of `input_ids`."""
        if self.last is None:
            self.offset = max(0, int(self.cache.get_seq_length()) - input_ids.shape[1])
            self.read = input_ids.shape[1] if self.start is None else self.start
            if self.parses:
                buffer = int(self.cache.policy.buffer)
                self.rows = [_Row(self.tokenizer, buffer) for _ in range(input_ids.shape[0])]
        self._tell(input_ids)

    def after(self, input_ids: Tensor) -> None:
        """Before the next forward pass: `input_ids` ends with the token that was just chosen."""
        self._tell(input_ids)
        if not self.rows:
            return
        new = input_ids[:, self.read :].tolist()
        for row, (state, ids) in enumerate(zip(self.rows, new, strict=True)):
            for i, token in enumerate(ids):
                position = self.offset + self.read + i
                for event in state.tree.feed(state.text.piece(token), position):
                    for start, end in state.queue.push(event):
                        self.cache.drop_span(row, start, end)
        self.read = input_ids.shape[1]

    def _tell(self, input_ids: Tensor) -> None:
        if self.rows and self.last is not None:
            n = self.last.shape[1]
            if input_ids.shape[0] != self.last.shape[0] or not torch.equal(input_ids[:, :n], self.last):
                raise UnsupportedPolicy(
                    f"policy {self.cache.policy.name!r} follows one text per row, but a row was replaced",
                    do="use no beam search, and make new hooks(cache, tokenizer) for every generate call",
                )
        self.last = input_ids
        remember(self.cache, input_ids, self.offset)


class _Processor(LogitsProcessor):
    def __init__(self, watcher: _Watcher) -> None:
        self._watcher = watcher

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Pass the scores through."""
        self._watcher.before(input_ids)
        return scores


class _Criterion(StoppingCriteria):
    def __init__(self, watcher: _Watcher) -> None:
        self._watcher = watcher

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Stop nothing."""
        self._watcher.after(input_ids)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class Hooks(Mapping[str, Any]):
    """The two arguments of `generate`; made by `hooks`, for one call.

    Attributes:
        logits_processor: list with one processor, which changes no score.
        stopping_criteria: list with one criterion, which stops nothing.
    """

    def __init__(self, watcher: _Watcher) -> None:
        """See `hooks`."""
        self._watcher = watcher
        self.logits_processor = LogitsProcessorList([_Processor(watcher)])
        self.stopping_criteria = StoppingCriteriaList([_Criterion(watcher)])

    @property
    def trees(self) -> list[TaskTree]:
        """The parser of each row: `done`, `broken`, `depth`."""
        return [row.tree for row in self._watcher.rows]

    def __getitem__(self, key: str) -> Any:
        """The argument called `key`."""
        if key not in ("logits_processor", "stopping_criteria"):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        """Names of the two arguments."""
        return iter(("logits_processor", "stopping_criteria"))

    def __len__(self) -> int:
        """Two."""
        return 2


def hooks(cache: Any, tokenizer: Any = None, start: int | None = None) -> Hooks:
    """Let a cache know the token ids, and prune finished subtask lists while the model writes.

    Args:
        cache: a `RemnantCache`.
        tokenizer: turns ids into text; needed by policies that follow the text, such as `tim`.
        start: index in `input_ids` of the first token of the task tree; default the first generated one.

    Raises:
        ConfigError: the policy follows the text and there is no tokenizer.
        UnsupportedPolicy: the policy wants positions to be used again, which `generate` cannot do.

    Example: model.generate(**inputs, past_key_values=cache, **hooks(cache, tokenizer))
    """
    policy = cache.policy
    if "events" in policy.needs:
        if tokenizer is None:
            raise ConfigError(f"policy {policy.name!r} without a tokenizer", accepted="hooks(cache, tokenizer)")
        if getattr(policy, "reuse_positions", False):
            raise UnsupportedPolicy(
                f"policy {policy.name!r} with reuse_positions=True: generate never encodes a suffix again",
                do="use remnant_hf.reason(model, tokenizer, ...), or reuse_positions=False",
            )
    return Hooks(_Watcher(cache, tokenizer, start))
