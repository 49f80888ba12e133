"""`RemnantRetriever`: what is remembered, as nodes for LlamaIndex's query engines."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from remnant.memory import Hit, Memory
from remnant_llamaindex.memory import RemnantMemory


class RemnantRetriever(BaseRetriever):
    """Finds records of one scope.

    A node's id is the record's; its metadata say what kind of record it is, how far it is trusted and where it comes
    from, and stay out of the text that models and embedders read.

    Args:
        memory: the core's, or one of LlamaIndex over it.
        k: records at most.
        budget_tokens: tokens of all records together at most.
        as_of: memory as it was after that change (an integer) or at that time (seconds since 1970).
        kinds: only records of these kinds.
        options: of `BaseRetriever`.
    """

    def __init__(
        self,
        memory: Memory | RemnantMemory,
        k: int = 10,
        *,
        budget_tokens: int | None = None,
        as_of: int | float | None = None,
        kinds: Collection[str] | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        super().__init__(**options)
        self._core = memory.core if isinstance(memory, RemnantMemory) else memory
        self._k, self._budget, self._as_of, self._kinds = k, budget_tokens, as_of, kinds

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        text = query_bundle.query_str
        return _nodes(self._core.recall(text, self._k, self._budget, self._as_of, kinds=self._kinds))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        text = query_bundle.query_str
        return _nodes(await self._core.arecall(text, self._k, self._budget, self._as_of, kinds=self._kinds))


def _nodes(hits: Sequence[Hit]) -> list[NodeWithScore]:
    return [NodeWithScore(node=_node(hit), score=hit.score) for hit in hits]


def _node(hit: Hit) -> TextNode:
    record = hit.record
    told = {
        "kind": record.kind,
        "trust": record.trust,
        "trigger": record.trigger,
        "outcome": record.outcome,
        "confidence": record.confidence,
        "version": record.version,
        "created_at": record.created_at,
        "valid_from": record.valid_from,
        "sources": [f"{source.source_type}:{source.source_id}" for source in record.provenance],
        "payload": dict(record.payload),
    }
    hidden = list(told)
    return TextNode(
        id_=hit.id,
        text=hit.text,
        metadata=told,
        excluded_embed_metadata_keys=hidden,
        excluded_llm_metadata_keys=hidden,
    )
