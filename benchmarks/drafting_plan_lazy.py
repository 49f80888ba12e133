"""Rows of `drafting_plan.py` about lazy logits: bytes of logits as predicted and as counted, and what the walk costs.

Texts of the testbed are read and their beginning again; `lookup` drafts, as chains or with a wrong sibling before every
token, and the testbed samples at temperature 1 or takes its best token. Eager and lazy runs draft and emit the same;
they are interleaved and timed by the process's own clock on one thread.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor

from remnant.progress import Progress
from remnant.speculative import Draft, MemoryModel, Sampler, SpecStats, Tree, generate, get_drafter
from remnant.speculative.live import LiveBytes
from remnant_hf._target import ModelTarget

CHUNK, NEW = 64, 32
CASES = (("chain", 1, 5), ("chain", 1, 17), ("chain", 4, 9), ("chain", 8, 17), ("tree", 1, 9), ("tree", 4, 17))
"""(draft, rows, nodes)."""


class LogitBytes(LiveBytes):
    """Counts, beside all tensors, those with one number per token of the vocabulary in their last dimension.

    Weights are not among the latter.
    """

    def __init__(self, vocab: int, model: Any) -> None:
        """See the class."""
        super().__init__(model)
        self.vocab = vocab
        self.logits = self.most = 0
        """Bytes of logits alive, and most of them alive at once."""

    def _note(self, tensor: Tensor) -> None:
        storage: Any = tensor.untyped_storage()
        fresh = storage not in self._seen
        super()._note(tensor)
        if fresh and hasattr(self, "vocab") and tensor.dim() and tensor.shape[-1] == self.vocab:
            count = int(storage.nbytes())
            self.logits += count
            self.most = max(self.most, self.logits)
            weakref.finalize(storage, self._less, count)

    def _less(self, count: int) -> None:
        self.logits -= count


class Forked:
    """The chains of `lookup` as trees: every token has a sibling before it that is wrong."""

    name: ClassVar[str] = "forked"
    vocab_size = None

    def __init__(self, vocab: int) -> None:
        """See the class."""
        self.inner, self.vocab = get_drafter("lookup"), vocab
        self.texts: list[list[int]] = []

    def reset(self, prompts: Sequence[Tensor]) -> None:
        """Begin."""
        self.inner.reset(prompts)
        self.texts = [prompt.tolist() for prompt in prompts]

    def propose(self, limits: Sequence[int], sampler: Any = None) -> list[Draft]:
        """Half as deep as the limit is large."""
        chains = self.inner.propose([limit // 2 for limit in limits], sampler)
        return [self._forked(text[-1], chain) for text, chain in zip(self.texts, chains, strict=True)]

    def _forked(self, root: int, chain: Draft) -> Draft:
        ids, parents, at = [root], [-1], 0
        for token in chain.ids.tolist():
            ids, parents = [*ids, (token + 1) % self.vocab, token], [*parents, at, at]
            at = len(ids) - 1
        tree = Tree.of(torch.tensor(ids), torch.tensor(parents))
        return Draft(tree.ids[1:], tree=tree) if len(ids) > 1 else chain

    def observe(self, emitted: Sequence[Tensor]) -> None:
        """Learn."""
        self.inner.observe(emitted)
        for text, ids in zip(self.texts, emitted, strict=True):
            text += ids.tolist()

    def rollback(self, counts: Sequence[int]) -> None:
        """Take back."""
        self.inner.rollback(counts)
        for text, count in zip(self.texts, counts, strict=True):
            del text[len(text) - count :]


def _run(
    model: Any, kind: str, prompts: list[Tensor], n: int, heat: float, lazy: bool
) -> tuple[list[Tensor], SpecStats]:
    drafter = get_drafter("lookup") if kind == "chain" else Forked(model.config.vocab_size)
    sampler = Sampler(heat, generator=torch.Generator().manual_seed(0))
    target = ModelTarget(model, chunk=CHUNK)
    return generate(target, drafter, prompts, NEW, sampler, num_draft=n - 1, lazy_logits=lazy)


def lazy_rows(model: Any, prompts: list[Tensor], repeats: int, progress: Progress) -> list[dict[str, Any]]:
    """One row per case and way to choose tokens.

    Args:
        model: the testbed.
        prompts: as many as the largest case has rows, `[T]` each.
        repeats: pairs of timed runs.
        progress: called per case.

    Returns:
        Bytes predicted by `MemoryModel` and counted, of logits alone and of everything, and ratios of process time,
        eager to lazy, of the runs and of the passes in them.
    """
    ModelTarget(model).defer()  # the look at two tokens is once per model
    cases = [(*case, heat) for case in CASES for heat in (1.0, 0.0)]
    rows: list[dict[str, Any]] = []
    for done, (kind, count, n, heat) in enumerate(cases):
        progress(done, len(cases), f"lazy logits of {kind}s")
        some = prompts[:count]
        work = (model, kind, some, n, heat)
        counted = {lazy: _counted(*work, lazy) for lazy in (False, True)}
        made = [
            {lazy: _timed(*work, lazy) for lazy in ((False, True) if i % 2 else (True, False))} for i in range(repeats)
        ]
        (ids, stats), (again, eager) = made[0][True][1], made[0][False][1]
        ratios = [one[False][0] / one[True][0] for one in made]
        length = max(map(len, some)) + NEW
        depth, top_k = (n - 1, 1) if kind == "chain" else ((n - 1) // 2, 2)
        memory = MemoryModel(model.config, None, "float32", chunk=CHUNK, host="engine", greedy=not heat)
        parts = memory.bytes(count, length, n, lazy_logits=True, depth=depth, top_k=top_k)
        rows.append(
            {
                "part": "lazy",
                "draft": kind,
                "rows": count,
                "tokens": length,
                "n": n,
                "temperature": heat,
                "logits_predicted": parts["logits"],
                "logits_counted": counted[True][0],
                "logits_ratio": round(parts["logits"] / counted[True][0], 3),
                "logits_eager": counted[False][0],
                "predicted": parts["total"],
                "peak": counted[True][1],
                "ratio": round(parts["total"] / counted[True][1], 3),
                "peak_eager": counted[False][1],
                "passes": stats.passes,
                "accepted": stats.accepted,
                "same_tokens": all(map(torch.equal, ids, again)) and stats.passes == eager.passes,
                "seconds": round(median(one[True][0] for one in made), 4),
                "eager_to_lazy": round(median(ratios), 3),
                "eager_to_lazy_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "repeats": repeats,
            }
        )
    return rows


def _counted(model: Any, kind: str, prompts: list[Tensor], n: int, heat: float, lazy: bool) -> tuple[int, int]:
    """Most bytes of logits alive at once, and most bytes of everything."""
    with LogitBytes(model.config.vocab_size, model) as live:
        _run(model, kind, prompts, n, heat, lazy)
    return live.most, live.peak


def _timed(model: Any, kind: str, prompts: list[Tensor], n: int, heat: float, lazy: bool) -> tuple[float, Any]:
    begin = time.process_time()
    out = _run(model, kind, prompts, n, heat, lazy)
    return time.process_time() - begin, out


def show_lazy(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    print(
        f"\n{'draft':<7}{'rows':>5}{'n':>4}{'heat':>6}{'predicted':>11}{'counted':>10}{'ratio':>7}{'eager':>10}", end=""
    )
    print(f"{'total':>7}{'same':>6}{'eager/lazy time':>17}")
    for row in (r for r in rows if r["part"] == "lazy"):
        sizes = f"{row['rows']:>5}{row['n']:>4}{row['temperature']:>6}{row['logits_predicted']:>11}"
        found = f"{row['logits_counted']:>10}{row['logits_ratio']:>7.3f}{row['logits_eager']:>10}{row['ratio']:>7.3f}"
        print(f"{row['draft']:<7}{sizes}{found}{row['same_tokens']!s:>6}{row['eager_to_lazy']:>17.3f}")
