"""Reasoning as a tree: a greedy loop that prunes finished subtask lists and answers tool calls on the way."""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ShapeError, UnsupportedPolicy
from remnant.kv.tasktree import Event, PruneQueue, Span, TaskTree
from remnant_hf._feed import feed, forward, remember
from remnant_hf._text import Detokenizer, decode, encode

__all__ = ["Reasoning", "Tool", "reason"]

Tool = Callable[..., Any]
"""Called with the parameters as keywords, or with the one value where they are no object; its answer becomes JSON."""
Observer = Callable[[list[int], Tensor], None]


@dataclass
class Reasoning:
    """What `reason` wrote.

    Attributes:
        ids: every token written, tool results and forced tokens included.
        text: the same as text.
        context: tokens that the model still sees, prompt included, when positions are used again; else all.
        pruned: tokens dropped from the cache.
        encoded: tokens that went through the model, those encoded a second time included.
        peak: most tokens that the cache held.
        calls: `(name, parameters, result)` of every tool call.
        tree: the parser; `tree.done` when the tree is complete, `tree.broken` when it is no JSON.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    context: list[int] = field(default_factory=list)
    pruned: int = 0
    encoded: int = 0
    peak: int = 0
    calls: list[tuple[str, Any, Any]] = field(default_factory=list)
    tree: TaskTree = field(default_factory=TaskTree)


def reason(
    model: Any,
    tokenizer: Any,
    input_ids: Tensor,
    cache: Any,
    max_new_tokens: int = 512,
    tools: Mapping[str, Tool] | None = None,
    forced: Sequence[int] = (),
    block: int | None = None,
    observer: Observer | None = None,
) -> Reasoning:
    """Let a model write a task tree in bounded memory.

    After the end of each subtask list the oldest list beyond the policy's `buffer` is dropped. With
    `reuse_positions` what follows the gap is encoded again, so that from then on the model is in the very state that
    the pruned text alone would have given.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        tokenizer: turns ids into text and tool results into ids.
        input_ids: `[1, S]` prompt; the cache must be empty.
        cache: a `RemnantCache` with a policy that follows events, such as `tim`.
        max_new_tokens: tokens to write, tool results and forced tokens included.
        tools: functions by name. When the parameters of a tool use are complete, its result is written for the
            model; an unknown tool or an exception is reported to the model as `{"error": ...}`.
        forced: tokens that are written first, whatever the model wants: the beginning of a tree. Tools used in it are
            not called, unless it ends with their parameters.
        block: tokens per forward pass of the prompt.
        observer: called after every forward pass with the tokens in context and the logits `[V]` that follow.

    Source: Luo et al. 2025, arXiv 2507.16784. Differs: greedy and one sequence at a time; no grammar is forced.
    """
    return _Loop(model, tokenizer, input_ids, cache, tools or {}, observer).run(max_new_tokens, forced, block)


class _Loop:
    """State of one call. `context` holds the tokens in the cache's coordinates; the first `stored` are in it."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        input_ids: Tensor,
        cache: Any,
        tools: Mapping[str, Tool],
        observer: Observer | None,
    ) -> None:
        policy = cache.policy
        if "events" not in policy.needs:
            raise UnsupportedPolicy(f"policy {policy.name!r} does not follow events", do='use "tim"')
        if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
            raise ShapeError(f"input_ids {list(input_ids.shape)}", accepted="[1, S], one sequence at a time")
        if cache.get_seq_length():
            raise ShapeError(f"a cache that holds {cache.get_seq_length()} tokens", accepted="an empty cache")
        self.model, self.tokenizer, self.cache, self.tools = model, tokenizer, cache, tools
        self.observer = observer
        self.prompt = input_ids
        self.reuse = bool(policy.reuse_positions)
        self.queue = PruneQueue(int(policy.buffer), self.reuse)
        self.context: list[int] = input_ids[0].tolist()
        self.stored = 0
        self.held = 0
        self.logits: Tensor | None = None
        self.pending: deque[int] = deque()
        self.text = Detokenizer(tokenizer)
        self.out = Reasoning()

    def run(self, max_new_tokens: int, forced: Sequence[int], block: int | None) -> Reasoning:
        self.logits = feed(self.model, self.prompt, self.cache, block)[0]
        self._encoded(len(self.context))
        self.pending.extend(int(t) for t in forced)
        ends = _end_tokens(self.model)
        while len(self.out.ids) < max_new_tokens and not self.out.tree.done:
            if self.pending:
                self._write(self.pending.popleft(), own=not self.pending)
                continue
            self._flush()
            assert self.logits is not None
            token = int(self.logits.argmax())
            if token in ends:
                break
            self._write(token, own=True)
        self.out.text = decode(self.tokenizer, self.out.ids)
        self.out.context = self.context
        return self.out

    def _write(self, token: int, own: bool) -> None:
        """Add one token, then do what its events ask for. Only after `own` tokens a tool may be called."""
        before = (self.text.copy(), copy.deepcopy(self.out.tree)) if self.tools and own else None
        piece = self.text.piece(token)
        events = self.out.tree.feed(piece, self.prompt.shape[1] + len(self.out.ids))
        call = next((e for e in events if e.kind == "tool_params_end" and e.name), None)
        if before is not None and call is not None:
            tail = call.rest.decode()
            if tail.strip():
                # The token runs past the parameters: write what comes before their end, and the result for the rest.
                self.text, self.out.tree = before
                self.pending.extend(encode(self.tokenizer, piece[: len(piece) - len(tail)]))
            else:
                self._append(token)
            self._call(call)
            return
        self._append(token)
        for event in events:
            for span in self.queue.push(event):
                self._prune(span)

    def _append(self, token: int) -> None:
        self.out.ids.append(token)
        self.context.append(token)

    def _call(self, event: Event) -> None:
        """Call a tool and queue its result as text."""
        parameters: Any = None
        tool = self.tools.get(event.name)
        try:
            parameters = json.loads(event.text, strict=False)
            if tool is None:
                raise LookupError(f"no tool {event.name!r}; there are {', '.join(sorted(self.tools))}")
            result = tool(**parameters) if isinstance(parameters, dict) else tool(parameters)
            text = json.dumps(result, ensure_ascii=False)
        except Exception as error:  # the model reads it and may correct its call
            result = {"error": f"{type(error).__name__}: {error}"}
            text = json.dumps(result, ensure_ascii=False)
        self.out.calls.append((event.name, parameters, result))
        self.pending.extend(encode(self.tokenizer, f', "tool_result": {text}'))

    def _prune(self, span: Span) -> None:
        """Drop a span; the token just written is still to be forwarded, so a span never reaches it."""
        start, end = span
        self.out.pruned += end - start
        if not self.reuse:
            self._flush(len(self.context) - 1)
            self.cache.drop_span(0, start, end)
            self.held -= end - start
            return
        del self.context[start:end]
        if self.stored > start:
            # Everything behind the gap saw what is gone: forget it and read it again from the gap on.
            self.cache.truncate(start)
            self.held, self.stored = start, start

    def _flush(self, upto: int | None = None) -> None:
        """Forward what the cache has not seen yet."""
        end = len(self.context) if upto is None else upto
        if end <= self.stored:
            return
        ids = torch.tensor([self.context[self.stored : end]], device=self.prompt.device)
        remember(self.cache, ids, self.stored)
        with torch.no_grad():
            self.logits = forward(self.model, ids, self.cache)[0]
        self._encoded(end - self.stored)

    def _encoded(self, n: int) -> None:
        self.stored += n
        self.held += n
        self.out.encoded += n
        self.out.peak = max(self.out.peak, self.held)
        if self.observer is not None and self.logits is not None:
            self.observer(self.context[: self.stored], self.logits)


def _end_tokens(model: Any) -> set[int]:
    end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return set(end) if isinstance(end, list) else set() if end is None else {int(end)}
