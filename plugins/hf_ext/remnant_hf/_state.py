"""What a layer holds between two passes, and how rows and devices change under it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv.policy import Policy
from remnant.kv.view import Rope
from remnant_hf._paging import PageIndex
from remnant_hf.attention import Facts
from remnant_hf.store import RaggedStore, SimulatedStore, SlotStore

__all__ = ["LayerState", "Ledger"]


@dataclass
class Ledger:
    """What the layers of one cache share: bytes held now and at most, and statistics on their way to a joint decision.

    It does not refer to the layers, so the cache and its memory are freed by reference count alone.
    """

    held: dict[int, int] = field(default_factory=dict[int, int])
    total: int = 0
    peak: int = 0
    stats: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    prefilling: bool = False
    blocked: bool = False
    probing: bool = False

    def note(self, order: int, allocated: int) -> None:
        """Record a layer's allocation in bytes."""
        before = self.held.get(order, 0)
        if allocated == before:
            return
        self.held[order] = allocated
        self.total += allocated - before
        self.peak = max(self.peak, self.total)


class LayerState(DynamicLayer):
    """Store, clocks and what the policy remembers: the part of `RemnantLayer` that decides nothing."""

    is_sliding = False
    is_compileable = False
    supports_early_init = False

    def __init__(
        self,
        policy: Policy,
        budget: int,
        index: int,
        order: int,
        layers: int,
        ledger: Ledger,
        rope: Rope | None = None,
        simulate: bool = False,
    ) -> None:
        """See the class."""
        self.policy, self.budget, self.index, self.order, self.layers = policy, budget, index, order, layers
        self.ledger, self.rope, self.simulate = ledger, rope, simulate
        self.siblings: list[Any] = []
        # A policy is frozen: what follows from its class and options is asked once, not at every token.
        self.bounded, self.spare = policy.bounded, min(policy.slack + 1, 1024)
        self.observes = type(policy).observe is not Policy.observe
        self.remembers = "all_queries" in policy.needs or (self.bounded and "queries" in policy.needs)
        watches = self.observes or self.remembers or "attn" in policy.needs
        self.when = policy.when if type(policy).due is Policy.due else None
        self.pages = None if policy.reads is None or order < policy.reads.dense else policy.reads
        self.waits = not watches and self.when is not None and self.pages is None
        self.in_place, self.turns = policy.in_place, getattr(policy, "positions", "keep") == "rerotate"
        self.record_past = False
        super().__init__()
        self._empty()

    def _empty(self) -> None:
        self.store: Any = SimulatedStore() if self.simulate else SlotStore()
        self.seen = 0
        self.step = 0
        self.decoded = 0
        self.tail = 0
        self.tokens = self.budget
        self.waiting = 0
        self.state: dict[str, Tensor] = {}
        self.real: Tensor | None = None
        self.holes = False
        self.padded = False
        self.newest: Tensor | None = None
        self.gaps_after: Tensor | None = None
        self.queries_real: Tensor | None = None
        self.facts: Facts | None = None
        self.queries: Tensor | None = None
        self.row: Tensor | None = None
        self.queries_end = 0
        self.expanded: tuple[Tensor, Tensor] | None = None
        self.stash: list[tuple[Tensor, int, int]] = []
        self.shift = 0
        self.sink_base: Tensor | None = None
        self.sink_ready: Tensor | None = None
        self.indexes: list[PageIndex] = []
        self.is_initialized = False
        self.ledger.note(self.order, 0)

    @property
    def keys(self) -> Any:
        """Stored keys as a rectangle where there is one; None before the first token."""
        return self._rectangle("k")

    @keys.setter
    def keys(self, value: Any) -> None:
        if value is not None:
            raise ConfigError("keys of a RemnantLayer are written by update() only")

    @property
    def values(self) -> Any:
        """Stored values; see `keys`."""
        return self._rectangle("v")

    @values.setter
    def values(self, value: Any) -> None:
        if value is not None:
            raise ConfigError("values of a RemnantLayer are written by update() only")

    def _rectangle(self, name: str) -> Tensor | None:
        if not getattr(self, "is_initialized", False):
            return None
        if isinstance(self.store, SlotStore):
            return self.store.get(name)
        dense = self.store.dense()
        return dense.k if name == "k" else dense.v

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note dtype and device; memory is taken by the first `update`."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.heads = value_states.shape[1]
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_max_length(self) -> int:
        """-1: the number of tokens seen is not bounded."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns, and the position that the first column stands for: stored slots are right-aligned."""
        stored = self.physical
        return stored + query_length, self.seen - stored

    @property
    def physical(self) -> int:
        """Slots that the stock mask has to cover, in tokens."""
        return self.store.all.n if isinstance(self.store, SimulatedStore) else self.store.stored

    @property
    def is_croppable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `crop` can undo the newest tokens exactly."""
        return self.record_past or self.tail > 0

    def awaits(self, key: Tensor) -> bool:
        """Whether the attention of the newest `update` is still to come, and these keys can be its own."""
        return self.waiting > 0 and key.shape[0] == self._batch() and key.shape[2] == self.physical

    def _stored(self) -> int:
        ragged = isinstance(self.store, RaggedStore | SimulatedStore)
        return self.store.mean_stored() if ragged else self.store.stored

    def _need_plain(self, what: str) -> None:
        if self.expanded is not None and self.policy.when:
            raise UnsupportedPolicy(
                f"{what} with policy {self.policy.name!r} on latent attention (MLA): keys exist only during attention",
                accepted="policy 'full'",
                do="generate without it",
            )

    # ---- rows and devices

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder rows, side state included."""
        self._rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.seen:
            self._rows(torch.arange(self._batch()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        if self.seen:
            self._rows(indices.nonzero().flatten() if indices.dtype == torch.bool else indices)

    def _batch(self) -> int:
        return len(self.store.lengths) if isinstance(self.store, RaggedStore) else self.store.buffers["v"].shape[0]

    def _rows(self, index: Tensor) -> None:
        if not self.seen:
            return
        self.store.take_rows(index)
        self.indexes = []
        pick = lambda x: x.index_select(0, index.to(x.device))  # noqa: E731
        self.state = {name: pick(x) for name, x in self.state.items()}
        self.stash = [(pick(q), n, seen) for q, n, seen in self.stash]
        for name in ("real", "queries", "queries_real", "gaps_after", "sink_base", "sink_ready"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else pick(value))

    def reset(self) -> None:
        """Back to empty, as if just made."""
        self._empty()

    def offload(self) -> None:
        """Move every tensor to the CPU, side state too; the next `update` moves them to where its keys are."""
        self.to(torch.device("cpu"))

    def prefetch(self) -> None:
        """Nothing to do: `update` moves the tensors to where its keys are."""

    def to(self, device: torch.device) -> None:
        """Move every tensor of this layer."""
        self.device = device
        if not self.seen:
            return
        self.store.to(device)
        self.indexes = []
        self.state = {name: x.to(device) for name, x in self.state.items()}
        self.stash = [(q.to(device), n, seen) for q, n, seen in self.stash]
        for name in ("real", "queries", "queries_real", "gaps_after", "sink_base", "sink_ready", "row"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))
