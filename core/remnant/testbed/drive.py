"""Take a batch of equally long examples through a cache and score every answer: plain, by tree, or by episode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.kv.tasktree import PruneQueue, TaskTree
from remnant.progress import Progress, silent
from remnant.testbed.tasks import Example

__all__ = ["Drive", "Scored", "by_episode", "by_tree", "full_bytes", "plain"]

_NONE = -100


@dataclass
class Scored:
    """What examples scored; one entry per example in every list.

    Attributes:
        hits: for each answer whether it was the most likely token.
        nll: for each answer its negative log probability, in nats.
        bytes: keys and values held at the end, of one sequence.
        peak_bytes: most bytes of cache buffers held at once, of one sequence.
        bytes_full: what a full cache would hold at the end.
        kept: fraction of the tokens seen that is still stored, mean over layers and heads.
        tokens: probe tokens read one by one.
        seconds: for those.
        extra: further facts, by name; means over examples are reported.
    """

    hits: list[list[bool]] = field(default_factory=list[list[bool]])
    nll: list[list[float]] = field(default_factory=list[list[float]])
    bytes: list[float] = field(default_factory=list[float])
    peak_bytes: list[float] = field(default_factory=list[float])
    bytes_full: list[float] = field(default_factory=list[float])
    kept: list[float] = field(default_factory=list[float])
    tokens: int = 0
    seconds: float = 0.0
    extra: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, other: Scored) -> None:
        """Append another batch."""
        for name in ("hits", "nll", "bytes", "peak_bytes", "bytes_full", "kept"):
            getattr(self, name).extend(getattr(other, name))
        for name, values in other.extra.items():
            self.extra.setdefault(name, []).extend(values)
        self.tokens += other.tokens
        self.seconds += other.seconds


@dataclass(frozen=True)
class Drive:
    """How to make a cache, and for which model.

    Attributes:
        model: a causal language model.
        policy: name of the policy.
        budget: tokens per KV head.
        options: of the policy.
        prefill_block: see `RemnantCache`.
    """

    model: Any
    policy: str
    budget: int
    options: dict[str, Any]
    prefill_block: int | None = None

    def cache(self) -> Any:
        """A fresh cache."""
        from remnant_hf import RemnantCache

        return RemnantCache(
            self.model.config, self.policy, budget=self.budget, prefill_block=self.prefill_block, **self.options
        )


def plain(drive: Drive, batch: Sequence[Example], progress: Progress = silent) -> Scored:
    """Prefill the contexts in one pass (or in blocks), then feed the probes token by token.

    Args:
        drive: model and policy.
        batch: examples whose contexts, and whose probes, have one length.
        progress: called as tokens are read.
    """
    from remnant_hf._feed import feed

    contexts = _stacked(drive.model, [e.context for e in batch])
    cache = drive.cache()
    feed(drive.model, contexts, cache, drive.prefill_block or contexts.shape[1])
    return _probe(drive, cache, batch, progress)


def by_tree(drive: Drive, batch: Sequence[Example], progress: Progress = silent) -> Scored:
    """Write the context as a task tree: the parser reads every token, finished lists leave the cache on the way."""
    from remnant_hf._feed import forward, remember

    scored = Scored()
    for example in batch:
        cache, whole, at = drive.cache(), _stacked(drive.model, [example.context]), 0
        remember(cache, whole, 0)
        for token, spans in _prunings(example, int(cache.policy.buffer)):
            forward(drive.model, whole[:, at:token], cache)
            for start, end in spans:
                cache.drop_span(0, start, end)
            at = token
        forward(drive.model, whole[:, at:], cache)
        scored.add(_probe(drive, cache, [example], progress))
    return scored


def by_episode(drive: Drive, batch: Sequence[Example], progress: Progress = silent) -> Scored:
    """Sort the context into episodes; each question is asked to a copy of the cache of its topic."""
    scored = Scored()
    for example in batch:
        scored.add(_one_conversation(drive, example, progress))
    return scored


def full_bytes(model: Any, tokens: int) -> int:
    """Bytes of keys and values of one sequence of so many tokens in a full cache."""
    c = model.config
    return 2 * tokens * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * model.dtype.itemsize


def _stacked(model: Any, rows: Sequence[Any]) -> Tensor:
    if len({len(row) for row in rows}) != 1:
        raise ShapeError("examples of different length in one batch", accepted="equal contexts and equal probes")
    return torch.tensor(np.stack(rows), device=model.device)


def _probe(drive: Drive, cache: Any, batch: Sequence[Example], progress: Progress) -> Scored:
    """Feed the probes and score."""
    probes = _stacked(drive.model, [e.probe for e in batch])
    targets = torch.full_like(probes, _NONE)
    for row, example in enumerate(batch):
        for i, token in example.answers:
            targets[row, i] = token
    began = time.perf_counter()
    hit, nll = read(drive.model, cache, probes, targets, progress)
    seconds = time.perf_counter() - began
    rows = len(batch)
    pick = [[i for i, _ in e.answers] for e in batch]
    scored = Scored(tokens=probes.numel(), seconds=seconds)
    scored.hits = [[bool(hit[r, i]) for i in at] for r, at in enumerate(pick)]
    scored.nll = [[float(nll[r, i]) for i in at] for r, at in enumerate(pick)]
    for name, value in _sizes(drive.model, cache, rows).items():
        setattr(scored, name, [value] * rows)
    return scored


def read(model: Any, cache: Any, probes: Tensor, targets: Tensor, progress: Progress = silent) -> tuple[Tensor, Tensor]:
    """Feed tokens one by one, whatever the model would have said.

    Args:
        model: a causal language model.
        cache: what has been read so far.
        probes: `[B, T]` int64.
        targets: `[B, T]` int64, the token expected next, or -100.
        progress: called after every token.

    Returns:
        (hit `[B, T]` bool, negative log probability `[B, T]` float32, 0 where nothing is expected), on the CPU.
    """
    from remnant_hf._feed import forward

    total = probes.shape[1]
    hits, nlls = torch.zeros(probes.shape, dtype=torch.bool), torch.zeros(probes.shape)
    for i in range(total):
        logits = forward(model, probes[:, i : i + 1], cache).float()
        wanted = targets[:, i]
        if bool((wanted != _NONE).any()):
            hits[:, i] = (logits.argmax(-1) == wanted).cpu()
            nlls[:, i] = F.cross_entropy(logits, wanted, ignore_index=_NONE, reduction="none").cpu()
        progress(i + 1, total, "reading the probe")
    return hits, nlls


def _sizes(model: Any, cache: Any, rows: int) -> dict[str, float]:
    """Bytes and kept fraction of one of the `rows` sequences of a cache."""
    stats = cache.stats()
    stored = [n for layer in stats.layers for row in layer.stored for n in row]
    return {
        "bytes": stats.bytes / rows,
        "peak_bytes": stats.peak_bytes / rows,
        "bytes_full": full_bytes(model, stats.seen),
        "kept": sum(stored) / len(stored) / stats.seen,
    }


def _prunings(example: Example, buffer: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Tokens of the context before whose forward pass spans are to be dropped, with the spans."""
    from remnant.testbed.tokenizer import load_tokenizer
    from remnant_hf._text import Detokenizer  # pyright: ignore[reportPrivateUsage]

    text, tree, queue = Detokenizer(load_tokenizer()), TaskTree(), PruneQueue(buffer)
    out: list[tuple[int, list[tuple[int, int]]]] = []
    for at, token in enumerate(example.context.tolist()):
        spans = [span for event in tree.feed(text.piece(token), at) for span in queue.push(event)]
        if spans:
            out.append((at, spans))
    if tree.broken:
        raise ConfigError("a context that is no task tree", accepted="an example of the task 'tree'")
    return out


def _one_conversation(drive: Drive, example: Example, progress: Progress) -> Scored:
    from remnant_hf import EpisodicCache

    turns = [example.context[start:end].tolist() for start, end, _ in example.segments]
    turns[0] = example.context[: example.segments[0][0]].tolist() + turns[0]
    topics = len({topic for *_, topic in example.segments})
    options: dict[str, Any] = {"episodes": topics, "block": 256, "conv_window": 1, "medoids": 3, **drive.options}
    made = EpisodicCache.build(drive.model, None, turns, budget=drive.budget, **options)
    scored = Scored()
    hits: list[bool] = []
    nll: list[float] = []
    used: list[dict[str, float]] = []
    begin = 0
    for i, answer in example.answers:
        asked = _stacked(drive.model, [example.probe[begin : i + 1]])
        targets = torch.full_like(asked, _NONE)
        targets[0, -1] = answer
        began = time.perf_counter()
        cache = made.select(example.probe[begin : i + 1].tolist())
        hit, loss = read(drive.model, cache, asked, targets, progress)
        scored.seconds += time.perf_counter() - began
        scored.tokens += asked.shape[1]
        hits.append(bool(hit[0, -1]))
        nll.append(float(loss[0, -1]))
        used.append(_sizes(drive.model, cache, 1))
        begin = i + 2  # behind the answer, which the next episode's cache need not read
    for name in ("bytes", "peak_bytes", "kept"):
        setattr(scored, name, [sum(sizes[name] for sizes in used) / len(used)])
    scored.hits, scored.nll = [hits], [nll]
    scored.bytes_full = [full_bytes(drive.model, len(example.tokens()))]
    scored.extra = {"bytes_all_episodes": [float(sum(c.stats().bytes for c in made.caches))]}
    return scored
