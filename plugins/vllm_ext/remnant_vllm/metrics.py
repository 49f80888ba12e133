"""What eviction did, on `/metrics`: counted in the process that serves the API, from lengths that it sees anyway.

No counter has to travel: how much goes is a pure function of lengths (`counts.py`). Prompt lengths and wishes of
requests are noted where the front end keeps its own statistics of them, so that every request is counted by its own
settings, when it happens, whether it is finished or aborted later.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from remnant.errors import RemnantError
from remnant_vllm._compat.engine import wrap_once
from remnant_vllm._compat.metrics import IterationStats, OutputProcessor, StatLoggerBase, StatLoggerManager
from remnant_vllm.asked import eviction

if TYPE_CHECKING:
    from remnant_vllm.settings import Settings

__all__ = ["COUNTERS", "StatLogger", "Tally", "install"]

_log = logging.getLogger("vllm.remnant")
_LABELS = ("model_name", "engine")

COUNTERS = {
    "remnant:evicted_tokens": "Tokens whose keys and values were evicted, per KV head, averaged over layers.",
    "remnant:freed_blocks": "KV blocks that requests gave back because eviction had emptied them.",
    "remnant:kv_bytes_saved": "Bytes of these blocks on all devices of the engine.",
}
"""Metric -> its meaning; the client appends `_total`. A request that starts again after preemption counts once, and a
block that others share counts as given back although it returns to the pool with the last of them."""


@dataclass
class Tally:
    """One request, from its first output to its last.

    Attributes:
        prompt_len: tokens.
        extra_args: of its sampling parameters.
        computed: tokens written at the output before.
        tokens: evicted so far, counted.
        blocks: given back so far, counted.
        settings: what it wants; resolved by the logger, which knows the engine.
        done: nothing more is to come.
    """

    prompt_len: int
    extra_args: Mapping[str, Any] | None
    computed: int = 0
    tokens: float = 0.0
    blocks: int = 0
    settings: Settings | None = None
    done: bool = False


@dataclass(frozen=True)
class _Place:
    """Layers with equal budgets: how many there are, how many block tables they have, tokens per block of these."""

    layers: int
    tables: int
    block_size: int
    order: int = 0
    of: int = 1


class StatLogger(StatLoggerBase):
    """Prometheus counters of one engine; inert unless the engine was asked for eviction.

    Args:
        vllm_config: of the engine.
        engine_index: its number among data-parallel ones.
    """

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        """See the class."""
        given = eviction(vllm_config)
        self.settings: Settings | None = None
        if given is None:
            return
        from remnant_vllm.settings import Settings

        install()
        settings = Settings.parse(given)
        try:
            self.places, self.block_bytes = _places(vllm_config, settings)
        except RemnantError as error:  # a model that serves well and whose configuration says things in its own way
            _log.warning("remnant: no metrics for this model: %s", error)
            return
        self.settings = settings
        labels = (vllm_config.model_config.served_model_name, str(engine_index))
        self.evicted, self.freed, self.saved = (counter.labels(*labels) for counter in _counters())

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0, **_: Any
    ) -> None:
        """Count what the outputs of a step tell."""
        if self.settings is None or iteration_stats is None:
            return
        tokens, blocks = 0.0, 0
        for tally, computed in getattr(iteration_stats, "remnant", ()):
            more = self.count(tally, computed)
            tokens, blocks = tokens + more[0], blocks + more[1]
        if tokens:
            self.evicted.inc(tokens)
        if blocks:
            self.freed.inc(blocks)
            self.saved.inc(blocks * self.block_bytes)

    def count(self, tally: Tally, computed: int) -> tuple[float, int]:
        """(tokens, blocks) that are new with this output.

        The worker evicts in the step that makes the output; the scheduler gives the blocks back when it plans the next
        one, so a request that ends with its first token never gives any back early.
        """
        assert self.settings is not None
        if tally.settings is None:
            tally.settings = self.settings.for_request(tally.extra_args)
        tokens, _ = self._gone(tally, computed)
        _, blocks = self._gone(tally, tally.computed)
        new = max(0.0, tokens - tally.tokens), max(0, blocks - tally.blocks)
        settled = tally.settings.mode == "prompt" and tally.computed >= tally.prompt_len
        tally.done = tally.settings.budget is None or settled
        tally.computed, tally.tokens, tally.blocks = computed, tally.tokens + new[0], tally.blocks + new[1]
        return new

    def _gone(self, tally: Tally, computed: int) -> tuple[float, int]:
        """(tokens per layer, blocks of all tables) that are gone at a length."""
        tokens, blocks, layers = 0, 0, 0
        for place in self.places:
            settings = tally.settings
            assert settings is not None
            if place.of > 1 and settings.budget is not None:
                share = settings.make().layer_share(tally.prompt_len, place.order, place.of, settings.budget)
                settings = replace(settings, budget=share)
            gone = settings.gone(computed, tally.prompt_len, place.block_size)
            tokens += gone * place.block_size * place.layers
            blocks += gone * place.tables
            layers += place.layers
        return tokens / max(1, layers), blocks

    def log_engine_initialized(self) -> None:
        """Nothing: the worker says what is evicted, because it knows the layers; see `report.py`."""


def _places(vllm_config: Any, settings: Settings) -> tuple[list[_Place], int]:
    """(layers that evict, bytes of a block on all devices) as the configuration of the model says."""
    from remnant.serving.model import read_config
    from remnant.serving.pool import Engine, Eviction, Pool, buckets

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    layers = read_config(model.hf_text_config.to_dict(), str(model.model)).layers
    full = sum(layer.window == "none" for layer in layers)
    budget = settings.budget or 1
    budgets = tuple(budget + i for i in range(full)) if settings.by_layer else (budget,)
    kind = str(vllm_config.cache_config.cache_dtype)
    element = {"float32": 4, "float16": 2, "bfloat16": 2}.get(kind) or model.dtype.itemsize
    engine = Engine(int(vllm_config.cache_config.block_size), element, parallel.tensor_parallel_size)
    pool = Pool(buckets(layers, engine, Eviction(settings.mode, budgets)), engine, 0)
    pairs = [(part, n) for part, n in zip(pool.parts, pool.tables, strict=True) if part.budget is not None]
    if settings.by_layer:
        places = [_Place(part.count, tables, part.block_size, i, full) for i, (part, tables) in enumerate(pairs)]
    else:
        places = [_Place(part.count, tables, part.block_size) for part, tables in pairs]
    return places, pool.block_bytes * parallel.tensor_parallel_size


@functools.cache
def _counters() -> tuple[Any, ...]:
    """The metrics; made once per process, and summed over processes by the client's own multi-process mode."""
    from prometheus_client import Counter

    return tuple(Counter(name, text, _LABELS) for name, text in COUNTERS.items())


def install() -> None:
    """Have the front end note lengths and count, and every engine with eviction log them; any number of times.

    Metrics are not worth stopping for: a vLLM whose statistics look different is told apart, with one warning.
    """
    wraps: tuple[tuple[type, str, Callable[..., Any], tuple[str, ...]], ...] = (
        (OutputProcessor, "add_request", _noting, ("request",)),
        (IterationStats, "update_from_output", _passing_on, ("output", "req_stats")),
        (StatLoggerManager, "__init__", _joining, ("vllm_config", "custom_stat_loggers")),
    )
    for owner, name, _, needed in wraps:
        if not set(needed) <= set(inspect.signature(inspect.unwrap(getattr(owner, name))).parameters):
            _log.warning("remnant: no metrics, because %s.%s is not what it was", owner.__name__, name)
            return
    for owner, name, make, _ in wraps:
        wrap_once(owner, name, make)


def _noting(original: Any) -> Any:
    """`OutputProcessor.add_request`: what is said once, beside the statistics that vLLM keeps of the request."""

    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        done = original(self, request, *args, **kwargs)
        state = self.request_states.get(request.request_id)
        stats = getattr(state, "stats", None)
        if stats is not None and not hasattr(stats, "remnant"):
            params = request.sampling_params
            stats.remnant = Tally(state.prompt_len, params.extra_args if params is not None else None)
        return done

    return add_request


def _passing_on(original: Any) -> Any:
    """`IterationStats.update_from_output`: which requests came on in this step, and how far."""
    where = inspect.signature(original)

    def update_from_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = original(self, *args, **kwargs)
        stats = where.bind(self, *args, **kwargs).arguments["req_stats"]
        tally: Tally | None = getattr(stats, "remnant", None)
        if tally is not None and not tally.done:
            # The newest token has been chosen, but its keys are not written yet.
            computed = tally.prompt_len + max(0, stats.num_generation_tokens - 1)
            self.__dict__.setdefault("remnant", []).append((tally, computed))
        return done

    return update_from_output


def _joining(original: Any) -> Any:
    """`StatLoggerManager.__init__`: engines with eviction count it, and vLLM without it never hears of us."""
    where = inspect.signature(original)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = where.bind(self, *args, **kwargs).arguments
        if eviction(given["vllm_config"]) is not None:
            others = list(given.get("custom_stat_loggers") or [])
            given["custom_stat_loggers"] = others if StatLogger in others else [*others, StatLogger]
        given.pop("self")
        original(self, **given)

    return __init__
