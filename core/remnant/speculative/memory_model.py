"""What speculative decoding holds in memory, in bytes, part by part: computed before any weight is loaded."""

from __future__ import annotations

from typing import Any, Literal

from remnant.errors import ConfigError, unknown
from remnant.speculative.sizes import Sizes, read_sizes

__all__ = ["Host", "MemoryModel"]

_FP32 = 4
Host = Literal["kernels", "engine", "transformers"]
_HOSTS: dict[str, int] = {"kernels": 0, "engine": 1, "transformers": 2**31}
"""Rows whose keys and values of a layer are copied at once."""
_CHAIN, _TREE = 4, 9
"""Rows of a vocabulary, in float32, that our engine works with while it decides about one row: probabilities, what is
left of them, and their float64 sums; a walk over a tree keeps all in float64."""


class MemoryModel:
    """Bytes of weights, caches and scratch of one target with one drafter.

    Args:
        target_cfg: of the target: a folder, a `config.json`, its content as a dict, or a configuration object.
        draft_cfg: of the drafter, likewise; None or `"lookup"` for a drafter without weights and cache.
        dtype: of both, as in `read_sizes`.
        target_weights: bytes of the target's weights, where they are known (quantised ones).
        draft_weights: bytes of the drafter's weights.
        slack: bytes for what is not modelled: the framework, its graphs, fragmentation.
        kv_budget: tokens per KV head that an evicting cache keeps of the target's text: `RemnantCache`'s `budget`, and
            where its policy evicts from prompts alone, the tokens of the answer on top.
        draft_context: tokens that the drafter reads at most, for one that sees a short context.
        chunk: tokens per pass while prompts are read; their activations count, and an evicting cache holds them on
            top of its budget. 0 counts the passes that verify alone: prompts are read elsewhere. As many as the text
            has are a prompt that is read at once.
        dense_mask: a mask over prefix and block, one byte an entry; False is the ancestor matrix of the block alone.
        host: what runs the passes. `kernels` read caches in place. `engine`, ours over transformers, copies one layer's
            keys and values of one row while it attends, repeated for every query head, writes the mask out as numbers,
            and holds probabilities beside logits. `transformers`, its own loop, does so for all rows.
        sampling: the drafter reports the whole distribution that it drew each token from.
        greedy: the target takes its best token, so that `engine` makes no probabilities of lazy logits.
        allow_larger: accept a drafter with more weights than its target.

    Raises:
        ConfigError: a configuration that cannot be read, vocabularies that differ, a drafter larger than its target,
            or a number out of range.

    Source: Yang et al. 2025 (SpecMemo), arXiv 2506.01986. Differs: the paper gives no formulas; these are ours.
    Example: MemoryModel(llama_2_7b, None, "float16").kv_per_token -> 524288
    """

    def __init__(
        self,
        target_cfg: Any,
        draft_cfg: Any = None,
        dtype: Any = "auto",
        *,
        target_weights: int | None = None,
        draft_weights: int | None = None,
        slack: int = 0,
        kv_budget: int | None = None,
        draft_context: int | None = None,
        chunk: int = 0,
        dense_mask: bool = True,
        host: Host = "kernels",
        sampling: bool = False,
        greedy: bool = False,
        allow_larger: bool = False,
    ) -> None:
        """See the class."""
        self.target = read_sizes(target_cfg, dtype, target_weights)
        none = draft_cfg is None or (isinstance(draft_cfg, str) and draft_cfg == "lookup")
        self.draft = None if none else read_sizes(draft_cfg, dtype, draft_weights)
        if host not in _HOSTS:
            raise unknown("host", host, _HOSTS)
        numbers = {"slack": slack, "chunk": chunk}
        for name, value in (numbers | {"kv_budget": kv_budget, "draft_context": draft_context}).items():
            low = 0 if name in numbers else 1
            if value is not None and value < low:
                raise ConfigError(f"{name}={value}", accepted=f"an integer of at least {low}")
        self.slack, self.chunk, self.kv_budget, self.draft_context = slack, chunk, kv_budget, draft_context
        self.dense_mask, self.host, self.sampling, self.greedy = dense_mask, host, sampling, greedy
        if self.draft is not None:
            _check_pair(self.target, self.draft, allow_larger)

    @property
    def kv_per_token(self) -> int:
        """Bytes of keys and values per token and row, of target and drafter together."""
        return self.target.kv_per_token + (self.draft.kv_per_token if self.draft else 0)

    def without_drafter(self) -> MemoryModel:
        """The same target decoding by itself: nothing of the drafter is loaded."""
        alone = MemoryModel.__new__(MemoryModel)
        alone.__dict__.update(self.__dict__)
        alone.draft = None
        return alone

    def stored(self, length: int) -> int:
        """Tokens per row that a full-attention layer of the target holds of a text of `length`."""
        return length if self.kv_budget is None else min(length, self.kv_budget + self.chunk)

    def bytes(
        self, B: int, L: int, n: int, lazy_logits: bool = True, *, depth: int | None = None, top_k: int = 1
    ) -> dict[str, int]:
        """Bytes held at most while blocks are verified.

        Args:
            B: rows.
            L: tokens per row at most, prompt and answer.
            n: nodes of the block that is verified, the root (the last emitted token) included; 1 is plain decoding.
            lazy_logits: the head is computed only where the walk comes by, one node per row at a time. Ours over
                transformers holds one row of logits per row then, and the work of one decision at a time; kernels two
                rows, and the probability of every drafted token. False holds float32 logits of all nodes, which is what
                the models of transformers give; their own loop always does.
            depth: levels of the tree below its root; left out, a chain of n - 1.
            top_k: nodes of a level that the drafter expands at once.

        Returns:
            `weights_target`, `weights_draft`, `kv` (both caches with n slots for tokens that are not accepted yet),
            `logits`, `mask`, `activations` (of one layer, its copied keys too; while prompts are read as far as that
            is more), `draft` (states and cache of the drafter's tree), `slack` and their sum `total`.

        Raises:
            ConfigError: a number below 1.
        """
        depth = n - 1 if depth is None else depth
        whole = all(hasattr(x, "__index__") for x in (B, L, n, top_k, depth))
        if not whole or min(B, L, n, top_k) < 1 or depth < 0:
            raise ConfigError(f"B={B}, L={L}, n={n}, depth={depth}, top_k={top_k}", accepted="integers of at least 1")
        limit = None if self.kv_budget is None else self.kv_budget + self.chunk
        kv = B * (self.target.kv(L, n, limit) + self._draft_kv(L, n))
        verifying = {
            "logits": self._logits(B, n, lazy_logits, top_k > 1),
            "mask": B * n * (self.stored(L) + n) if self.dense_mask else B * n * n,
            "draft": B * self._draft(n, depth, top_k),
        }
        # A prompt is read before anything is drafted: what only a block needs leaves room for the larger pass.
        spare = sum(verifying.values()) + B * n * self.kv_per_token
        parts = {
            "weights_target": self.target.weights,
            "weights_draft": self.draft.weights if self.draft else 0,
            "kv": kv,
            "logits": verifying["logits"],
            "mask": verifying["mask"],
            "activations": max(self._scratch(B, L, n, n), self._reading(B, L, n) - spare),
            "draft": verifying["draft"],
            "slack": self.slack,
        }
        return {**parts, "total": sum(parts.values())}

    def total(
        self, B: int, L: int, n: int, lazy_logits: bool = True, *, depth: int | None = None, top_k: int = 1
    ) -> int:
        """The sum of `bytes`."""
        return self.bytes(B, L, n, lazy_logits, depth=depth, top_k=top_k)["total"]

    def longest(
        self,
        budget: int,
        B: int,
        n: int,
        most: int,
        lazy_logits: bool = True,
        *,
        depth: int | None = None,
        top_k: int = 1,
    ) -> int:
        """Most tokens per row that fit, up to `most`; 0 when not even one does.

        Args:
            budget: bytes.
            B: rows.
            n: nodes of a block.
            most: tokens.
            lazy_logits: as in `bytes`.
            depth: as in `bytes`.
            top_k: as in `bytes`.
        """
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.total(B, middle, n, lazy_logits, depth=depth, top_k=top_k) <= budget
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def _draft_kv(self, length: int, n: int) -> int:
        return self.draft.kv(length, n, self.draft_context) if self.draft else 0

    def _logits(self, rows: int, n: int, lazy: bool, tree: bool) -> int:
        row = self.target.vocab * _FP32
        eager = rows * n * row * (1 if self.host == "kernels" else 2)
        if not lazy or self.host == "transformers":
            return eager
        if self.host == "kernels":
            return min(eager, rows * (2 * row + n * _FP32))
        work = 0 if self.greedy else _TREE if tree else _CHAIN
        return min(eager, (rows + work) * row)

    def _scratch(self, rows: int, length: int, n: int, tokens: int) -> int:
        """One layer's activations of a pass: of its attention, with the host's copies, or of the part behind it."""
        width, e = self.target.width, self.target.element
        columns = self.stored(length) + n
        copies = min(rows, _HOSTS[self.host]) * columns * (self.target.copy + tokens * e)
        attention = rows * tokens * 3 * width * e + copies
        return max(rows * tokens * 4 * self.target.inner * e, attention)

    def _reading(self, rows: int, length: int, n: int) -> int:
        """Activations and mask of a pass over a chunk of the prompts."""
        tokens = min(self.chunk, length)
        stream = rows * tokens * 2 * self.target.width * self.target.element  # beside the layer: its input and output
        if tokens == length:  # the whole prompt at once is causal as it is, without any mask
            return stream + rows * tokens * self._widest() * self.target.element
        mask = rows * tokens * self.stored(length) if self.dense_mask else 0
        return stream + self._scratch(rows, length, n, tokens) + mask if tokens else 0

    def _widest(self) -> int:
        return max(4 * self.target.inner, 3 * self.target.width)

    def _draft(self, n: int, depth: int, top_k: int) -> int:
        if self.draft is None or n < 2:
            return 0
        states = top_k * depth * (self.draft.width * self.draft.element + self.draft.kv_per_token)
        return states + ((n - 1) * self.target.vocab * _FP32 if self.sampling else 0)


def _check_pair(target: Sizes, draft: Sizes, allow_larger: bool) -> None:
    if draft.vocab != target.vocab:
        raise ConfigError(
            f"the drafter has {draft.vocab} token ids and the target {target.vocab}",
            accepted="a drafter with the vocabulary of its target",
            do="a drafter whose head alone is reduced says so with draft_vocab_size",
        )
    if draft.weights > target.weights and not allow_larger:
        raise ConfigError(
            f"the drafter ({draft.weights} bytes) is larger than its target ({target.weights} bytes)",
            accepted="a smaller drafter",
            do="swap the two, or allow it where the drafter reads a shorter context",
        )
