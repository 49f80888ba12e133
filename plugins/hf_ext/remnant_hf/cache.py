"""`RemnantCache`: a drop-in for `past_key_values` whose full-attention layers obey a KV policy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv.policy import Policy, get_policy
from remnant.kv.rope import rope_of
from remnant.kv.view import Budget, Rope
from remnant_hf import bridge
from remnant_hf.layer import Ledger, RemnantLayer
from remnant_hf.stats import CacheStats, LayerStats

__all__ = ["RemnantCache"]

_RELATIVE_BIAS = {
    "baichuan", "bloom", "cpmant", "falcon_alibi", "inkling", "inkling2", "inkling2_text", "inkling_text", "longt5",
    "mpt", "mt5", "pix2struct_text_model", "pop2piano", "switch_transformers", "t5", "udop", "umt5",
}  # fmt: skip
_FOREVER = 2**31 - 1


class RemnantCache(DynamicCache):
    """Generate with a bounded KV cache: `model.generate(**inputs, past_key_values=RemnantCache(model.config, ...))`.

    Sliding-window, linear-attention and other bounded layers keep their stock classes; only layers of full attention
    obey the policy. Positions stay those of the original text, so nothing else changes for the model.

    Args:
        config_or_model: a model or its configuration; it decides the kinds of layers.
        policy: a name of `remnant.kv.list_policies()` or a policy object.
        budget: tokens kept per KV head, the protected ones included. Optional only where a policy ignores it.
        prefill_block: compress after every block of a prompt that is fed in blocks of this many tokens, so that the
            peak is budget + block. Pass the same number as `prefill_chunk_size` to `generate`, or use
            `remnant_hf.feed`.
        simulate: keep everything and hide what would be evicted; for tests and quality studies.
        options: options of the policy, when it is given by name.

    Raises:
        ConfigError: a budget, option or policy that is not accepted.
        UnsupportedPolicy: the model cannot be served with this policy.

    Example:
        cache = RemnantCache(model.config, "snapkv", budget=1024)
        out = model.generate(**inputs, past_key_values=cache, max_new_tokens=100)
        cache.stats().bytes
    """

    def __init__(
        self,
        config_or_model: Any,
        policy: str | Policy = "snapkv",
        budget: int | None = None,
        prefill_block: int | None = None,
        simulate: bool = False,
        **options: Any,
    ) -> None:
        """See the class."""
        bridge.install()
        config = _text_config(config_or_model)
        self.policy = _policy(policy, options)
        self.budget = _budget(self.policy, budget)
        if prefill_block is not None and (type(prefill_block) is not int or prefill_block < 1):
            raise ConfigError(f"prefill_block={prefill_block!r}", accepted="an integer of at least 1, in tokens")
        self.prefill_block = prefill_block
        self.tokens: Tensor | None = None
        self._wants = self.policy.wants
        super().__init__(config=config)
        self.ledger = Ledger()
        self.governed: list[RemnantLayer] = []
        """The layers that obey the policy."""
        chosen = [i for i, layer in enumerate(self.layers) if type(layer) is DynamicLayer]
        rope = self._rope(config)
        for order, index in enumerate(chosen):
            layer = RemnantLayer(self.policy, self.budget, index, order, len(chosen), self.ledger, rope, simulate)
            self.layers[index] = layer
            self.governed.append(layer)
        if chosen and "layers" in self.policy.needs:
            # Only the last layer knows the others, and they do not know it: no cycle, so memory is freed at once.
            self.governed[-1].siblings = self.governed[:-1]
        _refuse_bias(config)

    def _rope(self, config: Any) -> Rope | None:
        wanted = "rope" in self.policy.needs or getattr(self.policy, "positions", "keep") == "rerotate"
        wanted = wanted or getattr(self.policy, "merge_keys", False)
        return rope_of(config) if wanted else None

    # ---- what transformers asks

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append to a layer; see `RemnantLayer.update`."""
        if not torch.compiler.is_compiling():
            if self.prefill_block or self._wants:
                self._warn(key_states.shape[2])
            before = self.layers[layer_idx - 1] if layer_idx else None
            if isinstance(before, RemnantLayer) and before.waiting and self.policy.needs:
                before._missed()
            layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
            if isinstance(layer, RemnantLayer):
                return layer.update(key_states, value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def _warn(self, count: int) -> None:
        """Say once what the user should know: memory not bounded as asked, or a policy left without what it wants."""
        if self.prefill_block and count > self.prefill_block:
            warnings.warn(
                f"a block of {count} tokens arrived, prefill_block is {self.prefill_block}: memory is not bounded as "
                f"asked; pass prefill_chunk_size={self.prefill_block} to generate",
                stacklevel=4,
            )
        wants, self._wants = self._wants, ""
        if wants and (self.tokens is not None or count > 1 or not self.get_seq_length()):
            self._wants = wants if self.tokens is None else ""
        elif wants:
            warnings.warn(
                f"policy {self.policy.name!r} was not given {wants}; pass **remnant_hf.hooks(cache, tokenizer) to "
                "generate, or read the text with remnant_hf.feed or remnant_hf.EpisodicCache",
                stacklevel=4,
            )

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns and offset of the mask: those of our widest layer, because one mask serves all of them."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if not isinstance(layer, RemnantLayer):
            if isinstance(layer, CacheLayerMixin) or not self.governed:
                return super().get_mask_sizes(query_length, layer_idx)
            layer = self.governed[0]
        widest = 0
        for each in self.governed:
            stored = each.physical
            if stored > widest:
                widest = stored
        return widest + query_length, layer.seen - widest

    # ---- what a user asks

    def stats(self) -> CacheStats:
        """Tokens seen and stored, bytes now and at most, evictions; per layer too.

        Raises:
            UnsupportedPolicy: the last pass stored keys that its attention never showed to the policy.
        """
        self._finish()
        layers = tuple(_layer_stats(i, layer) for i, layer in enumerate(self.layers))
        stock = sum(s.allocated for s in layers if s.kind != "remnant")
        return CacheStats(
            seen=max((s.seen for s in layers), default=0),
            bytes=sum(s.bytes for s in layers),
            allocated=sum(s.allocated for s in layers),
            peak_bytes=self.ledger.peak + stock,
            evicted=sum(s.evicted for s in layers),
            layers=layers,
        )

    def kept_positions(self, layer: int) -> Tensor:
        """True token positions that a layer still holds.

        Args:
            layer: the model's layer index.

        Returns:
            `[B, H, K]` int64, ascending; -1 behind the end of rows or heads that keep fewer, padding left out.

        Raises:
            ConfigError: the layer is not governed by the policy.
        """
        found = self.layers[layer] if 0 <= layer < len(self.layers) else None
        if not isinstance(found, RemnantLayer):
            accepted = ", ".join(str(x.index) for x in self.governed)
            raise ConfigError(f"layer {layer} is not under policy {self.policy.name!r}", accepted=accepted or "none")
        self._finish()
        if not found.seen:
            return torch.empty(0, 0, 0, dtype=torch.int64)
        dense = found.store.dense()
        exists = dense.pos >= 0 if dense.valid is None else dense.valid & (dense.pos >= 0)
        key = dense.pos.masked_fill(~exists, _FOREVER).sort(-1).values
        width = int(exists.sum(-1).max())
        return key[..., :width].masked_fill(key[..., :width] == _FOREVER, -1)

    def _finish(self) -> None:
        """Whoever looks is told of an attention that did not come by, should no further pass notice it."""
        for layer in self.governed:
            if layer.waiting:
                layer._missed()

    def tokens_until_eviction(self) -> int:
        """Tokens that may arrive before any layer evicts; a drafter must not draft past it."""
        self._finish()
        return min((layer.tokens_until_eviction() for layer in self.governed), default=_FOREVER)

    @contextmanager
    def prefilling(self) -> Iterator[RemnantCache]:
        """Inside, forward passes are parts of one prompt: the decision waits for the end.

        With `prefill_block` the cache is still compressed after every block, so memory stays bounded.
        """
        self.ledger.prefilling, self.ledger.blocked = True, self.prefill_block is not None
        try:
            yield self
        finally:
            self.ledger.prefilling = self.ledger.blocked = False
        self.commit()

    def commit(self) -> None:
        """Take the decisions that are due for the prompt as it stands."""
        for layer in self.governed:
            if layer.seen:
                layer.commit()

    @contextmanager
    def probe(self) -> Iterator[RemnantCache]:
        """Inside, forward passes read the cache and are observed by the policy, and leave no trace at the end."""
        before = {layer.index: layer.seen for layer in self.governed}
        stock = [layer for layer in self.layers if not isinstance(layer, RemnantLayer)]
        if stock:
            raise UnsupportedPolicy(
                f"probe() on a model with {type(stock[0]).__name__} layers, which cannot be rolled back",
                accepted="models with full attention in every layer",
            )
        self.ledger.probing = True
        try:
            yield self
        finally:
            self.ledger.probing = False
            for layer in self.governed:
                extra = layer.seen - before[layer.index]
                if extra:
                    layer.store.drop_newest(extra)
                    layer.seen -= extra
                    layer.tail -= extra
                layer.waiting = 0

    def drop_span(self, row: int, start: int, end: int) -> None:
        """Evict true positions `start <= p < end` of one batch row in every governed layer.

        Raises:
            ConfigError: the row or span does not exist.
        """
        seen = self.get_seq_length()
        if not 0 <= start <= end <= seen:
            raise ConfigError(f"span {start}:{end}", accepted=f"0 <= start <= end <= {seen}")
        for layer in self.governed:
            batch = layer._batch()
            if not 0 <= row < batch:
                raise ConfigError(f"row {row}", accepted=f"0 to {batch - 1}")
            drop = torch.zeros(batch, layer.seen, dtype=torch.bool, device=layer.device)
            drop[row, start:end] = True
            layer.drop_positions(drop)

    def truncate(self, length: int) -> None:
        """Forget every token at position `length` or later, as if it had not been read."""
        for layer in self.governed:
            layer.truncate(length)

    def offload(self, layer_idx: int | None = None, only_non_sliding: bool = True) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move the cache, or one layer, to the CPU, side state too.

        Governed layers come back with their next forward pass by themselves; stock layers that were moved need
        `prefetch()`. Sliding layers stay unless asked for: they are small.
        """
        for layer in self._movable(layer_idx, only_non_sliding):
            layer.offload()

    def prefetch(self, layer_idx: int | None = None, only_non_sliding: bool = True) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move the cache, or one layer, back to where it came from."""
        for layer in self._movable(layer_idx, only_non_sliding):
            layer.prefetch()

    def _movable(self, layer_idx: int | None, only_non_sliding: bool) -> list[Any]:
        chosen = self.layers if layer_idx is None else [self.layers[layer_idx]]
        return [x for x in chosen if not (only_non_sliding and getattr(x, "is_sliding", False))]


def _text_config(config_or_model: Any) -> Any:
    config = getattr(config_or_model, "config", config_or_model)
    if not hasattr(config, "get_text_config"):
        raise ConfigError(
            f"{type(config_or_model).__name__} as the first argument",
            accepted="a transformers model or its configuration",
            do="RemnantCache(model.config, ...)",
        )
    return config.get_text_config(decoder=True)


def _policy(policy: str | Policy, options: dict[str, Any]) -> Policy:
    if isinstance(policy, str):
        return get_policy(policy, **options)
    if not isinstance(policy, Policy):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"policy {policy!r}", accepted="a name or a policy object of remnant.kv")
    if options:
        raise ConfigError(
            f"options {', '.join(options)} beside a policy object", do=f"get_policy({policy.name!r}, ...) takes them"
        )
    return policy


def _budget(policy: Policy, budget: int | None) -> int:
    if budget is None:
        if policy.reads or any(t.kind != "event" for t in policy.when):
            raise ConfigError(
                f"no budget for policy {policy.name!r}", accepted="an integer in tokens per KV head", do="budget=1024"
            )
        return _FOREVER
    tokens = Budget(budget).tokens
    if tokens < policy.minimum and (policy.when or policy.reads):
        raise ConfigError(
            f"budget {tokens} for policy {policy.name!r}",
            accepted=f"at least {policy.minimum} tokens with these options",
        )
    return tokens


def _refuse_bias(config: Any) -> None:
    kind = getattr(config, "model_type", "")
    if kind in _RELATIVE_BIAS or getattr(config, "alibi", False):
        raise UnsupportedPolicy(
            f"model type {kind!r} biases attention by slot distance (ALiBi or relative bias): slots cannot be removed",
            accepted="models with rotary or no positions",
        )


def _layer_stats(index: int, layer: Any) -> LayerStats:
    if isinstance(layer, RemnantLayer):
        counts = layer.store.counts() if layer.seen else []
        start = layer.state.get("start")
        pads = start.tolist() if start is not None else [0] * len(counts)
        evicted = sum(layer.seen - pad - n for row, pad in zip(counts, pads, strict=True) for n in row)
        held = layer.store.bytes() if layer.seen else 0
        allocated = layer.store.allocated() if layer.seen else 0
        return LayerStats(index, "remnant", layer.seen, counts, held, allocated, evicted)
    tensors = [getattr(layer, name, None) for name in ("keys", "values", "conv_states", "recurrent_states")]
    size = sum(t.nbytes for t in tensors if isinstance(t, Tensor))
    seen = layer.get_seq_length() if isinstance(layer, CacheLayerMixin) else 0
    return LayerStats(index, type(layer).__name__, seen, [], size, size, 0)
