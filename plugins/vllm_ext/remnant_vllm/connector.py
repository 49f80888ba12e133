"""KV blocks that outlive the engine: a KV connector of vLLM over a store in memory and in a folder.

    --kv-transfer-config '{"kv_connector": "RemnantConnector", "kv_connector_module_path": "remnant_vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"path": "DIR", "host_bytes": 8000000000, "disk_bytes": 64000000000}}'

A later engine with the same model, or another one at the same time, loads the blocks of a prompt's known beginning
instead of computing them. Engines that compress and engines that do not share a folder: only blocks that eviction
never writes to are saved, and enough of a prompt is left to compute for the policy to see its queries.

Blocks are loaded before the step that needs them and only if they are in memory, checked, at the moment they are
promised. They are copied out at the end of a step and written by a thread of their own. Nothing is kept for models
with sliding-window, linear or cross attention layers (`--disable-hybrid-kv-cache-manager` makes sliding windows full
blocks, which works), for prompts given as embeddings, and for prompts that grow while they run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from prometheus_client import Counter, Gauge

from remnant.hosts import installed_version
from remnant_vllm._compat.connector import (
    CacheHitSource,
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorPromMetrics,
    KVConnectorRole,
    KVConnectorStats,
    KVConnectorWorkerMetadata,
    SupportsHMA,
    get_pp_group,
    get_tp_group,
)
from remnant_vllm.blockstore import COUNTERS, GAUGES, BlockStore, Leased, StoreOptions, fingerprint
from remnant_vllm.connector_scheduler import LocalDesk, Move, Question, RemoteDesk, SchedulerSide
from remnant_vllm.connector_worker import WorkerSide, caches_of
from remnant_vllm.copier import BlockCopier, Placed
from remnant_vllm.identity import facts, obstacle, one_block_size

__all__ = ["Answers", "Plan", "RemnantConnector", "StoreMetrics", "StoreStats"]

_log = logging.getLogger("vllm.remnant")
_WORKERS: dict[str, WorkerSide] = {}
"""Engine id -> the worker of that engine, where it lives in this process."""


@dataclass
class Plan(KVConnectorMetadata):
    """What the scheduler tells every worker with a step."""

    loads: list[Move] = field(default_factory=list[Move])
    saves: list[Move] = field(default_factory=list[Move])
    questions: list[Question] = field(default_factory=list[Question])
    ended: list[str] = field(default_factory=list[str])


@dataclass
class Answers(KVConnectorWorkerMetadata):
    """What workers tell the scheduler after a step.

    Attributes:
        held: request id -> leading blocks that every worker holds for it.
        workers: how many workers said so.
    """

    held: dict[str, Leased]
    workers: int = 1

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """What two groups of workers hold both."""
        assert isinstance(other, Answers)
        both = {
            name: Leased(min(mine.blocks, other.held[name].blocks), max(mine.from_disk, other.held[name].from_disk))
            for name, mine in self.held.items()
            if name in other.held
        }
        only_one = dict.fromkeys(self.held.keys() ^ other.held.keys(), Leased(0, 0))
        return Answers({**both, **only_one}, self.workers + other.workers)


class StoreStats(KVConnectorStats):
    """Counters, summed over workers and time, and what each worker holds, newest first: see `COUNTERS`, `GAUGES`."""

    def reset(self) -> None:
        """Forget everything."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        """Take in later stats, or those of another worker."""
        mine, theirs = self.data.get("counters", {}), other.data.get("counters", {})
        counters = {name: mine.get(name, 0) + theirs.get(name, 0) for name in {**mine, **theirs}}
        gauges = {**self.data.get("gauges", {}), **other.data.get("gauges", {})}
        self.data = {"counters": counters, "gauges": gauges}
        return self

    def reduce(self) -> dict[str, int | float]:
        """One number per name, for the log."""
        return {**self.data.get("counters", {}), **_held(self.data)}

    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not self.data


class StoreMetrics(KVConnectorPromMetrics):
    """`vllm:remnant_store_*` on /metrics; every name in `COUNTERS` (with `_total`) and `GAUGES`."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: list[str], labelvalues: Any) -> None:
        """Make the metrics; vLLM calls this once per process that serves them."""
        super().__init__(vllm_config, metric_types, labelnames, labelvalues)
        counter, gauge = metric_types[Counter], metric_types[Gauge]
        made = {
            name: counter(name=f"vllm:remnant_store_{name}", documentation=text, labelnames=labelnames)
            for name, text in COUNTERS.items()
        }
        for name, text in GAUGES.items():
            made[name] = gauge(
                name=f"vllm:remnant_store_{name}",
                documentation=text,
                labelnames=labelnames,
                multiprocess_mode="mostrecent",
            )
        self._made = {
            engine: {name: metric.labels(*values) for name, metric in made.items()}
            for engine, values in labelvalues.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Record the stats of one step."""
        made = self._made[engine_idx]
        for name, amount in transfer_stats_data.get("counters", {}).items():
            made[name].inc(amount)
        for name, value in _held(transfer_stats_data).items():
            made[name].set(value)


def _held(data: dict[str, Any]) -> dict[str, int]:
    """Gauges, all workers together; the folder is one, so it counts once."""
    ranks = list(data.get("gauges", {}).values())
    if not ranks:
        return {}
    return {name: (max if name == "disk_bytes" else sum)(rank[name] for rank in ranks) for name in GAUGES}


class RemnantConnector(KVConnectorBase_V1, SupportsHMA):
    """Connects vLLM to a `BlockStore`; see the module for what it does and how to switch it on.

    vLLM makes one in the scheduler and one in every worker.

    Raises:
        ConfigError: `kv_connector_extra_config` is not as `StoreOptions` says, or memory holds not even one block.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        """See the class."""
        super().__init__(vllm_config, role, kv_cache_config)
        transfer, parallel = self._kv_transfer_config, vllm_config.parallel_config
        options = StoreOptions.parse(transfer.kv_connector_extra_config)
        self._workers = parallel.world_size
        # The limit is for the engine; every worker has its share of every block.
        self._options = replace(options, host_bytes=options.host_bytes // self._workers)
        self._engine = str(transfer.engine_id)
        self._worker: WorkerSide | None = None
        self._scheduler: SchedulerSide | None = None
        why = obstacle(vllm_config, kv_cache_config)
        self._inert = why is not None
        if why is not None:
            if role is KVConnectorRole.SCHEDULER:
                _log.warning("remnant: the KV store stays empty, it does not support %s", why)
        elif role is KVConnectorRole.SCHEDULER:
            specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
            size, loads, saves = one_block_size(kv_cache_config), transfer.is_kv_consumer, transfer.is_kv_producer
            self._scheduler = SchedulerSide(specs, size, self._options, loads, saves)

    @property
    def requires_kv_delivery(self) -> bool:
        """No: a block that is not saved is computed again some day."""
        return False

    @property
    def store(self) -> BlockStore | None:
        """The store, on a worker whose caches are registered."""
        return self._worker.store if self._worker is not None else None

    # Worker

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Open the store: only now is it known how a block looks."""
        if self._inert:
            return
        config = self._kv_cache_config
        layers = [
            Placed(name, number, cache)
            for number, group in enumerate(config.kv_cache_groups)
            for name, cache in zip(group.layer_names, caches_of(group.layer_names, kv_caches), strict=True)
        ]
        copier = BlockCopier(layers, config.num_blocks)
        if self._worker is not None:
            self._worker.copier = copier
            return
        rank = get_pp_group().rank_in_group, get_tp_group().rank_in_group
        name = fingerprint(facts(self._vllm_config, config, copier.layout, installed_version("vllm") or "", rank))
        store = BlockStore(self._options, name, copier.block_bytes)
        self._worker = _WORKERS[self._engine] = WorkerSide(copier, store, len(config.kv_cache_groups))
        self._rank = f"{rank[0]}.{rank[1]}"
        _log.info("remnant: KV store %s, %d bytes per block", name.hex()[:32], copier.block_bytes)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load what the plan says; all of it, now: the layers of this step read it."""
        plan = self._plan()
        if self._worker is not None and plan is not None:
            self._worker.answer(plan.questions, plan.ended)
            self._worker.load(plan.loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is under way: loads are over before the first layer."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: whole blocks are saved when all layers are done."""

    def wait_for_save(self) -> None:
        """Copy what the plan says out of the cache."""
        plan = self._plan()
        if self._worker is not None and plan is not None:
            self._worker.save(plan.saves)

    def _plan(self) -> Plan | None:
        return self._connector_metadata if isinstance(self._connector_metadata, Plan) else None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that were promised and are gone; should that ever be, `kv_load_failure_policy` decides."""
        return self._worker.take_failed() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> Answers | None:
        """Answers to the scheduler's questions."""
        answers = self._worker.take_answers() if self._worker is not None else {}
        return Answers(answers) if answers else None

    def get_kv_connector_stats(self) -> StoreStats | None:
        """What this worker counted since the last step."""
        news = self._worker.news() if self._worker is not None else None
        return None if news is None else StoreStats({"counters": news[0], "gauges": {self._rank: news[1]}})

    def shutdown(self) -> None:
        """Write what waits."""
        if self._worker is not None:
            if _WORKERS.get(self._engine) is self._worker:
                del _WORKERS[self._engine]
            self._worker.close()

    # Scheduler

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded beyond those that vLLM has; loading is never asynchronous."""
        if self._scheduler is None:
            return 0, False
        if self._scheduler.desk is None:
            self._scheduler.desk = self._open_desk()
        return self._scheduler.matched(request, num_computed_tokens), False

    def _open_desk(self) -> LocalDesk | RemoteDesk:
        worker = _WORKERS.get(self._engine) if self._workers == 1 else None
        return RemoteDesk(self._workers) if worker is None else LocalDesk(worker.store)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note where the tokens are to be loaded to."""
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def get_external_cache_hit_sources(self, request: Any, num_external_tokens: int) -> dict[CacheHitSource, int]:
        """How many tokens came from memory and how many from disk."""
        read = self._scheduler.from_disk(request, num_external_tokens) if self._scheduler is not None else 0
        sources = {CacheHitSource.HOST: num_external_tokens - read, CacheHitSource.DISK: read}
        return {source: tokens for source, tokens in sources.items() if tokens}

    def build_connector_meta(self, scheduler_output: Any) -> Plan:
        """Everything the workers have to do with this step."""
        side = self._scheduler
        if side is None:
            return Plan()
        state = scheduler_output.kv_connector_block_state
        saves = side.plan_saves(scheduler_output.num_scheduled_tokens, state.get_block_ids) if state is not None else []
        questions, ended = side.desk.take() if isinstance(side.desk, RemoteDesk) else ([], [])
        return Plan(side.take_loads(), saves, questions, ended)

    def update_connector_output(self, connector_output: Any) -> None:
        """Take in what the workers answered."""
        answers = connector_output.kv_connector_worker_meta
        if isinstance(answers, Answers) and self._scheduler is not None:
            desk = self._scheduler.desk
            if isinstance(desk, RemoteDesk):
                desk.answer(answers.held, answers.workers)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Let go of what was held for it; its blocks may be freed at once."""
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """As `request_finished`."""
        if self._scheduler is not None:
            self._scheduler.finished(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        """From now on this engine uses nothing stored so far, and no other engine uses what it stores."""
        if self._scheduler is not None:
            self._scheduler.reset()
        return True

    def take_events(self) -> Iterable[Any]:
        """No events."""
        return ()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> StoreStats:
        """Stats from what crossed to another process."""
        return StoreStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls, vllm_config: Any, metric_types: Any, labelnames: list[str], per_engine_labelvalues: Any
    ) -> StoreMetrics:
        """The Prometheus side."""
        return StoreMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)
