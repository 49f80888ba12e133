"""A tiny real model with a cache, a first-order Markov target, and drafters that guess well, badly and in trees."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest


def _tiny(vocab: int = 23, seed: int = 0, d: int = 16, layers: int = 2, heads: int = 2, sharp: float = 6.0) -> Any:
    """A random causal transformer as a `Target`; rows run one by one, padding answers NaN."""
    import torch
    from torch import nn

    class Tiny:
        def __init__(self) -> None:
            r = torch.Generator().manual_seed(seed)
            make = lambda *shape: torch.randn(*shape, generator=r, dtype=torch.float64) / shape[0] ** 0.5  # noqa: E731
            self.embed, self.head = make(vocab, d) * vocab**0.5, make(d, vocab) * sharp
            self.blocks = [(make(d, 3 * d), make(d, d), make(d, 4 * d), make(4 * d, d)) for _ in range(layers)]
            self.vocab_size, self.weight_bytes = vocab, 8 * 2 * vocab * d
            self.caches: list[Any] = []
            self.pending: list[Any] = []
            self.steps, self.calls = 0, list[str]()

        def run(self, tokens: Any, positions: Any, cache: Any, mask: Any) -> tuple[Any, Any]:
            """`[T]` tokens behind a cache `[layers, 2, heads, S, d/heads]` -> `[T, V]` logits, their own cache part."""
            t, s = tokens.shape[0], cache.shape[3]
            angle = positions.double().unsqueeze(1) / 7.0 ** torch.arange(d // 2)
            x = self.embed[tokens] + torch.cat([angle.sin(), angle.cos()], 1)
            sees = torch.cat([torch.ones(t, s, dtype=torch.bool), mask], 1)
            new = []
            for layer, (qkv, out, up, down) in enumerate(self.blocks):
                q, k, v = (nn.functional.layer_norm(x, (d,)) @ qkv).view(t, 3, heads, -1).permute(1, 2, 0, 3)
                new.append(torch.stack([k, v]))
                k, v = torch.cat([cache[layer, 0], k], 1), torch.cat([cache[layer, 1], v], 1)
                scores = (q @ k.transpose(1, 2) / k.shape[-1] ** 0.5).masked_fill(~sees, float("-inf"))
                x = x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(t, d) @ out
                x = x + torch.tanh(nn.functional.layer_norm(x, (d,)) @ up) @ down
            return nn.functional.layer_norm(x, (d,)) @ self.head, torch.stack(new)

        def fresh(self, tokens: Any) -> tuple[Any, Any]:
            t = tokens.shape[0]
            empty = torch.zeros(layers, 2, heads, 0, d // heads, dtype=torch.float64)
            return self.run(tokens, torch.arange(t), empty, torch.ones(t, t, dtype=torch.bool).tril())

        def prefill(self, prompts: Any) -> Any:
            read = [self.fresh(prompt) for prompt in prompts]
            self.caches = [cache for _, cache in read]
            return torch.stack([logits[-1] for logits, _ in read])

        def step(self, tokens: Any, positions: Any, widths: Any, mask: Any = None) -> Any:
            assert tokens.shape[0] == len(self.caches)
            self.steps += 1
            out = torch.full((*tokens.shape, vocab), float("nan"), dtype=torch.float64)
            self.pending = []
            for row, w in enumerate(widths.tolist()):
                assert 1 <= w <= tokens.shape[1]
                assert positions[row, 0] == self.caches[row].shape[3]
                own = torch.ones(w, w, dtype=torch.bool).tril() if mask is None else mask[row, :w, :w]
                out[row, :w], new = self.run(tokens[row, :w], positions[row, :w], self.caches[row], own)
                self.pending.append(new)
            return out

        def commit(self, keep: Any) -> None:
            for row, columns in enumerate(keep.tolist()):
                columns = [c for c in columns if c >= 0]
                self.caches[row] = torch.cat([self.caches[row], self.pending[row][:, :, :, columns]], 3)
            self.pending = []

        def crop(self, lengths: Any) -> None:
            for row, n in enumerate(lengths.tolist()):
                assert 0 <= n <= self.caches[row].shape[3]
                self.caches[row] = self.caches[row][:, :, :, :n]

        def select(self, rows: Any) -> None:
            self.caches = [self.caches[row] for row in rows.tolist()]

        def nbytes(self) -> int:
            return sum(x.numel() * x.element_size() for x in [*self.caches, *self.pending])

        def greedy(self, prompt: Any, n: int, eos: tuple[int, ...] = (), process: Any = None) -> list[int]:
            """Plain decoding without any cache: the oracle."""
            text = prompt
            for _ in range(n):
                row = self.fresh(text)[0][-1:]
                row = row if process is None else process(text.unsqueeze(0), row.clone())
                text = torch.cat([text, row.argmax(-1)])
                if int(text[-1]) in eos:
                    break
            return text[prompt.shape[0] :].tolist()

    return Tiny()


def _markov(logits: Any) -> Any:
    """A target whose next token depends on the last one only: `[V, V]` logits."""

    class Markov:
        vocab_size, weight_bytes = logits.shape[0], 8

        def prefill(self, prompts: Any) -> Any:
            return logits[[int(prompt[-1]) for prompt in prompts]]

        def step(self, tokens: Any, positions: Any, widths: Any, mask: Any = None) -> Any:
            return logits[tokens]

        def commit(self, keep: Any) -> None: ...
        def crop(self, lengths: Any) -> None: ...
        def select(self, rows: Any) -> None: ...
        def nbytes(self) -> int:
            return 0

    return Markov()


def _oracle(texts: list[list[int]], vocab: int, wrong: float = 0.3, seed: int = 0, shape: Any = None) -> Any:
    """A drafter that knows how each row goes on and errs now and then.

    `shape(row, limit)` gives the parents of a tree, root first; None drafts chains.
    """
    import torch

    from remnant.speculative import Draft, Tree

    class Oracle:
        name: ClassVar[str] = "oracle"
        vocab_size = vocab

        def __init__(self) -> None:
            self.r = torch.Generator().manual_seed(seed)
            self.texts: list[list[int]] = []
            self.observed: list[list[int]] = []

        def reset(self, prompts: Any) -> None:
            self.texts = [prompt.tolist() for prompt in prompts]
            self.starts = [len(text) for text in self.texts]

        def guess(self, row: int, place: int) -> int:
            known, at = texts[row], len(self.texts[row]) - self.starts[row] + place
            lost = at >= len(known) or float(torch.rand((), generator=self.r)) < wrong
            return int(torch.randint(vocab, (), generator=self.r)) if lost else known[at]

        def propose(self, limits: Any, sampler: Any = None) -> Any:
            return [self.draft(row, limit) for row, limit in enumerate(limits)]

        def draft(self, row: int, limit: int) -> Any:
            if shape is None or not limit:
                return Draft(torch.tensor([self.guess(row, i) for i in range(limit)], dtype=torch.int64))
            parent = torch.tensor(shape(row, limit))
            tree = Tree.of(torch.full((len(parent),), self.texts[row][-1]), parent)
            ids = [self.texts[row][-1], *(self.guess(row, int(depth) - 1) for depth in tree.depth[1:])]
            tree = Tree.of(torch.tensor(ids), parent)
            return Draft(tree.ids[1:], tree=tree)

        def observe(self, emitted: Any) -> None:
            for text, tokens in zip(self.texts, emitted, strict=True):
                text += tokens.tolist()

        def rollback(self, counts: Any) -> None:
            raise AssertionError("not in these tests")

    return Oracle()


def _chi_square(counts: Any, expected: Any) -> float:
    """How many standard deviations the statistic lies above its mean, for counts that follow `expected`."""
    live = expected > 0
    assert not counts[~live].any()
    statistic = ((counts[live] - expected[live]) ** 2 / expected[live]).sum()
    free = int(live.sum()) - 1
    return float((statistic - free) / (2 * free) ** 0.5)


@pytest.fixture(scope="session")
def tiny():
    """Make a tiny model."""
    return _tiny


@pytest.fixture(scope="session")
def markov():
    """Make a Markov target."""
    return _markov


@pytest.fixture(scope="session")
def oracle():
    """Make a drafter that knows the answer."""
    return _oracle


@pytest.fixture(scope="session")
def chi_square():
    """Judge counts."""
    return _chi_square
