"""`RoutedQueryEngine`: reads the whole history, blocks of it, or what retrieval finds, as the router decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.response.schema import RESPONSE_TYPE, Response
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from remnant.errors import ConfigError
from remnant.routing import (
    Answer,
    BlockReader,
    ContextRouter,
    Conversation,
    Index,
    Mode,
    Model,
    Request,
    RouteDecision,
    reorder,
)
from remnant_llamaindex.reorder import ranked

History = Sequence[Conversation] | Callable[[], Sequence[Conversation]]


class RoutedQueryEngine(BaseQueryEngine):
    """Answers questions about a history of conversations the way that suits its length, its cost and the question.

    The response's metadata hold the decision with its reason under `route`. Where blocks hold no answer, the router's
    further steps are taken, and then the answer is that there is none.

    Args:
        history: conversations, oldest first, or a function that gives them.
        llm: writes the answer.
        model: the same model, as far as routing needs it.
        retriever: finds passages; without one, modes that retrieve are not considered. A node names its
            conversation by `conversation` in its metadata, for modes that read whole conversations.
        router: decides.
        request: (question, conversations) -> what the router is asked, instead of the counts alone.
        reader: reads blocks; None makes one of `llm`.
        synthesizer: puts an answer together; None makes one of `llm`.
    """

    def __init__(
        self,
        history: History,
        llm: BaseLLM,
        model: Model,
        *,
        retriever: BaseRetriever | None = None,
        router: ContextRouter | None = None,
        request: Callable[[str, Sequence[Conversation]], Request] | None = None,
        reader: BlockReader | None = None,
        synthesizer: BaseSynthesizer | None = None,
    ) -> None:
        """See the class."""
        super().__init__(None)
        self._history, self._model, self._retriever = history, model, retriever
        self._router, self._asked = router or ContextRouter(), request
        self._reader = reader or BlockReader(lambda prompt: llm.complete(prompt).text)
        self._write = synthesizer or get_response_synthesizer(llm=llm)  # pyright: ignore[reportArgumentType]
        self.last: RouteDecision | None = None
        """The last decision, to which the next one sticks near a threshold."""

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"synthesizer": self._write}

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        request, decision, told = self._decided(query_bundle)
        while True:
            passages = self._found(decision, query_bundle) if _searches(decision) else []
            answer = self._from_blocks(decision, query_bundle, told, passages)
            if answer is None:
                nodes = _shown(decision, told, passages, self._recent(request))
                return _routed(self._write.synthesize(query_bundle, nodes), decision)
            step = self._router.escalate(request, decision) if answer.abstained else None
            if step is None:
                return _routed(_response(answer), decision)
            decision = step

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        request, decision, told = await asyncio.to_thread(self._decided, query_bundle)
        while True:
            passages = await self._afound(decision, query_bundle) if _searches(decision) else []
            answer = await asyncio.to_thread(self._from_blocks, decision, query_bundle, told, passages)
            if answer is None:
                nodes = _shown(decision, told, passages, self._recent(request))
                return _routed(await self._write.asynthesize(query_bundle, nodes), decision)
            step = self._router.escalate(request, decision) if answer.abstained else None
            if step is None:
                return _routed(_response(answer), decision)
            decision = step

    def _decided(self, query: QueryBundle) -> tuple[Request, RouteDecision, list[Conversation]]:
        told = list(self._history() if callable(self._history) else self._history)
        ask = self._asked or self._counted
        request = ask(query.query_str, told)
        self.last = self._router.decide(request, self.last)
        return request, self.last, told

    def _counted(self, question: str, told: Sequence[Conversation]) -> Request:
        index = Index(ready=self._retriever is not None)
        return Request(question, len(told), sum(one.tokens for one in told), self._model, index=index)

    def _recent(self, request: Request) -> int:
        return self._router.settings.for_model(request.model.name).recent

    def _some(self) -> BaseRetriever:
        if self._retriever is None:
            raise ConfigError("a request whose index is ready", accepted="one that is not", do="pass retriever=")
        return self._retriever

    def _found(self, decision: RouteDecision, query: QueryBundle) -> list[NodeWithScore]:
        return ranked(self._some().retrieve(query))[: decision.k or None]

    async def _afound(self, decision: RouteDecision, query: QueryBundle) -> list[NodeWithScore]:
        return ranked(await self._some().aretrieve(query))[: decision.k or None]

    def _from_blocks(
        self,
        decision: RouteDecision,
        query: QueryBundle,
        told: Sequence[Conversation],
        passages: Sequence[NodeWithScore],
    ) -> Answer | None:
        """The answer from blocks, or that there is none; None in modes that read no blocks."""
        if decision.mode is Mode.NONE:
            return Answer(self._reader.abstention, True)
        if decision.mode is Mode.RETRIEVE_THEN_BLOCK:
            wanted = {_conversation(node) for node in passages}
            return self._reader.answer(query.query_str, [one for one in told if one.id in wanted])
        return self._reader.answer(query.query_str, told) if decision.mode is Mode.BLOCK_EXTRACT else None


def _searches(decision: RouteDecision) -> bool:
    return decision.mode in (Mode.RAG, Mode.RECENT_PLUS_RAG, Mode.RETRIEVE_THEN_BLOCK)


def _shown(
    decision: RouteDecision, told: Sequence[Conversation], passages: Sequence[NodeWithScore], recent: int
) -> list[NodeWithScore]:
    """What the model reads, in the decided order: passages, then conversations as they came."""
    if decision.mode is Mode.FULL:
        return [_node(one) for one in told]
    newest = list(told[-recent:]) if decision.mode is Mode.RECENT_PLUS_RAG else []
    held = {one.id for one in newest}
    older = [node for node in passages if _conversation(node) not in held]
    if decision.reorder:
        older = reorder(older)
    else:
        place = {one.id: number for number, one in enumerate(told)}
        older.sort(key=lambda node: place.get(_conversation(node), len(place)))
    return [*older, *(_node(one) for one in newest)]


def _node(one: Conversation) -> NodeWithScore:
    text = f"{one.date}\n{one.text}" if one.date else one.text
    return NodeWithScore(node=TextNode(id_=one.id, text=text), score=None)


def _conversation(node: NodeWithScore) -> str:
    """The conversation that a passage is of: said in its metadata, or in its record's payload."""
    data: dict[str, Any] = node.metadata
    return str(data.get("conversation") or (data.get("payload") or {}).get("conversation") or node.node_id)


def _response(answer: Answer) -> Response:
    named = {item.id: item for item in answer.items}
    nodes = [
        TextNode(id_=id, text=named[id].quote, metadata={"conversation": named[id].conversation_id}) for id in named
    ]
    told = {"abstained": answer.abstained, "used": list(answer.used), "missing": list(answer.missing)}
    return Response(answer.text, [NodeWithScore(node=node) for node in nodes], {"blocks": told})


def _routed(response: RESPONSE_TYPE, decision: RouteDecision) -> RESPONSE_TYPE:
    response.metadata = {**(response.metadata or {}), "route": decision.to_dict()}
    return response
