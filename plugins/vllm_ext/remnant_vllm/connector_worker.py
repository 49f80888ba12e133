"""The worker's half of the KV connector: copies blocks in and out of its cache, and owns the store."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor

from remnant.errors import ConfigError
from remnant_vllm.blockstore import BlockStore, Leased
from remnant_vllm.connector_scheduler import Move, Question
from remnant_vllm.copier import BlockCopier

__all__ = ["WorkerSide"]

_log = logging.getLogger("vllm.remnant")


class WorkerSide:
    """One rank's blocks.

    Args:
        copier: reaches the cache.
        store: keeps the blocks.
        groups: number of KV groups.

    Attributes:
        failed: ids of blocks that could not be loaded since the last report; empty unless something is wrong with us,
            because only blocks in memory are ever promised.
        answers: request id -> what is held for it, since the last report.
    """

    def __init__(self, copier: BlockCopier, store: BlockStore, groups: int) -> None:
        """See the class."""
        self.copier, self.store, self.groups = copier, store, groups
        self.failed: set[int] = set()
        self.answers: dict[str, Leased] = {}
        self._gauges: dict[str, int] = {}

    def answer(self, questions: Sequence[Question], ended: Sequence[str]) -> None:
        """Hold what is asked for, let go of what is not wanted any more."""
        for request in ended:
            self.store.release(request)
        for question in questions:
            self.answers[question.request] = self.store.lease(question.request, question.keys)

    def load(self, moves: Sequence[Move]) -> None:
        """Copy blocks into the cache, before the forward pass that reads them."""
        for move in moves:
            payloads = [self.store.get(key) for key in move.keys]
            sound = next((i for i, payload in enumerate(payloads) if payload is None), len(payloads))
            self.copier.write([group[:sound] for group in move.ids], [p for p in payloads[:sound] if p is not None])
            self.store.release(move.request)
            self.store.counts.add("loaded_blocks", sound)
            self.store.counts.add("loaded_bytes", sound * self.copier.block_bytes)
            if sound < len(payloads):
                self._fail(move, sound)

    def _fail(self, move: Move, sound: int) -> None:
        if self.groups > 1:  # vLLM cannot map ids of blocks back to requests then
            raise RuntimeError(f"{len(move.keys) - sound} promised blocks of request {move.request} are gone")
        self.failed.update(move.ids[0][sound:])

    def save(self, moves: Sequence[Move]) -> None:
        """Copy blocks out of the cache, those that the store lacks; writing them to disk happens elsewhere."""
        for move in moves:
            wanted = self.store.missing(move.keys)
            if not wanted:
                continue
            ids = [[group[i] for i in wanted] for group in move.ids]
            for place, payload in zip(wanted, self.copier.read(ids), strict=True):
                self.store.put(move.keys[place], payload)

    def take_failed(self) -> set[int]:
        """Blocks that vLLM must compute itself; reported once."""
        failed, self.failed = self.failed, set()
        return failed

    def take_answers(self) -> dict[str, Leased]:
        """Answers; reported once."""
        answers, self.answers = self.answers, {}
        return answers

    def news(self) -> tuple[dict[str, int], dict[str, int]] | None:
        """What was counted since the last report and what is held now; None when neither has changed."""
        counters, gauges = self.store.counts.news(), self.store.gauges()
        if not counters and gauges == self._gauges:
            return None
        self._gauges = gauges
        return counters, gauges

    def close(self) -> None:
        """Write what waits, and say what became of everything."""
        self.store.close()
        total = {name: n for name, n in self.store.counts.total.items() if n}
        _log.info("remnant: KV store closed; %s", ", ".join(f"{name}={n}" for name, n in total.items()) or "unused")


def caches_of(layers: Sequence[str], caches: Mapping[str, Tensor]) -> list[Tensor]:
    """The tensors of a group.

    Raises:
        ConfigError: vLLM registered no tensor for a layer.
    """
    lacking = [name for name in layers if not isinstance(caches.get(name), Tensor)]
    if lacking:
        raise ConfigError(f"no KV tensor for {', '.join(lacking[:3])}", do="leave out --kv-transfer-config")
    return [caches[name] for name in layers]
