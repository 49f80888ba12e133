"""The scheduler's side: blocks that eviction emptied go back to the pool, and only sound blocks are shared."""

from __future__ import annotations

import math
import sys
from typing import Any

from remnant_vllm._compat.engine import FullAttentionManager, KVCacheManager, wrap_once
from remnant_vllm.settings import Settings

__all__ = ["RemnantManager", "install"]


class RemnantManager(FullAttentionManager):
    """Full attention whose first blocks disappear as `gone_blocks` says.

    Attributes:
        asked: request id -> what it asked for, from its first lookup to its end.
        freed: blocks given back early since the start.
        evicted: tokens per KV head that these held.
    """

    def __init__(self, kv_cache_spec: Any, *args: Any, **kwargs: Any) -> None:
        """As the parent; in mode `stream` a request never holds more than its bounded share."""
        super().__init__(kv_cache_spec, *args, **kwargs)
        self.asked: dict[str, Settings] = {}
        self.freed = 0
        if kv_cache_spec.remnant.mode == "stream":
            self.max_admission_blocks_per_request = kv_cache_spec.live_blocks()

    @property
    def evicted(self) -> int:
        """Tokens per KV head that were evicted by giving blocks back."""
        return self.freed * self.block_size

    def meet(self, request: Any) -> Settings:
        """The settings of a request; remembered, because later calls bring its id only."""
        known = self.asked.get(request.request_id)
        if known is None:
            params = request.sampling_params
            known = self.kv_cache_spec.remnant.for_request(params.extra_args if params is not None else None)
            self.asked[request.request_id] = known
        return known

    def _settings(self, request_id: str, prompt_len: int) -> Settings:
        return self.kv_cache_spec.settings(prompt_len, self.asked.get(request_id))

    def reusable(self, request: Any) -> int:
        """Tokens of a request that may come from the prefix cache; a resumed one that evicts nothing may find more."""
        settings = self.kv_cache_spec.settings(request.num_prompt_tokens, self.meet(request))
        if settings.stable(request.num_prompt_tokens, self.block_size) is None:
            return sys.maxsize
        return settings.reusable(request.num_prompt_tokens, self.block_size)

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
        *args: Any,
        **kw: Any,
    ) -> None:
        """Give back what the worker has emptied; only settled tokens count, so drafts and async steps are safe."""
        if num_prompt_tokens is None:
            return
        settings = self._settings(request_id, num_prompt_tokens)
        gone = settings.gone(processed_computed_tokens, num_prompt_tokens, self.block_size)
        if gone:
            free = self.block_pool.get_num_free_blocks()
            self._remove_blocks_in_range(request_id, 0, gone)
            self.freed += self.block_pool.get_num_free_blocks() - free

    def cache_blocks(self, request: Any, num_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Hash only blocks that eviction never writes to."""
        limit = self.kv_cache_spec.settings(request.num_prompt_tokens, self.meet(request)).stable(
            request.num_prompt_tokens, self.block_size
        )
        super().cache_blocks(request, num_tokens if limit is None else min(num_tokens, limit), *args, **kwargs)
        self.num_cached_block.setdefault(request.request_id, 0)  # marks it as running, even when nothing is hashed

    def pop_blocks_for_free(self, request_id: str) -> Any:
        """Forget the request too."""
        self.asked.pop(request_id, None)
        return super().pop_blocks_for_free(request_id)


def _cut_hits(original: Any) -> Any:
    """`KVCacheManager.get_computed_blocks`: never share a block that this very prompt is going to overwrite."""

    def get_computed_blocks(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, request, *args, **kwargs)
        managers = [m for m in self.coordinator.single_type_managers if isinstance(m, RemnantManager)]
        if not managers:
            return found
        limit = min(manager.reusable(request) for manager in managers)
        blocks, tokens, boundary = found
        if limit < sys.maxsize:
            unit = math.lcm(*(manager.block_size for manager in self.coordinator.single_type_managers))
            limit -= limit % unit
            # Sliding layers keep their window at the boundaries that a later prompt can resume at; this is one.
            boundary = boundary or limit
        if tokens > limit:
            # Cutting the list would do for full attention; a sliding layer must find its window in front of the cut.
            fewer, tokens, *_ = self.coordinator.find_longest_cache_hit(request.block_hashes, limit)
            blocks = self.create_kv_cache_blocks(fewer)
        return blocks, tokens, boundary

    return get_computed_blocks


def install() -> None:
    """Wrap the lookup; once per process."""
    wrap_once(KVCacheManager, "get_computed_blocks", _cut_hits)


install()
