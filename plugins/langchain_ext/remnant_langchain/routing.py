"""How much of a chat history goes to the model, decided at every call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from langchain.agents.middleware import AgentMiddleware, AgentState, ExtendedModelResponse, ModelRequest, ModelResponse
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable
from langgraph.types import Command
from typing_extensions import NotRequired

from remnant.errors import ConfigError, unknown
from remnant.index.words import rank, terms
from remnant.memory.llm import ChatModel
from remnant.routing import (
    Answer,
    Budgets,
    ContextRouter,
    Conversation,
    Cost,
    Index,
    Mode,
    Model,
    Request,
    RouteDecision,
    Settings,
    Unit,
    assemble,
    count_tokens,
    joined,
)
from remnant_langchain._prompt import Position, with_block
from remnant_langchain._quotes import Recent, aextracted, as_block, extracted
from remnant_langchain._turns import History, cut
from remnant_langchain.models import as_llm


class RouterState(AgentState[Any]):
    """The agent's state with the last decision in it: mode, reason and numbers, no texts."""

    remnant_route: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


@dataclass(frozen=True)
class _Plan:
    """What was decided for one call.

    Args:
        history: the messages, cut.
        decision: the router's.
        units: the earlier turns that go into the prompt, or are read in blocks where that was decided.
        newest: ids of those that are sent in any case.
        settings: of the reader.
    """

    history: History
    decision: RouteDecision
    units: tuple[Unit, ...]
    newest: frozenset[str]
    settings: Settings

    @property
    def in_blocks(self) -> tuple[Conversation, ...]:
        """What is to be read in blocks."""
        if self.decision.mode not in (Mode.BLOCK_EXTRACT, Mode.RETRIEVE_THEN_BLOCK):
            return ()
        return joined([unit for unit in self.units if unit.id not in self.newest])

    def kept(self) -> list[int]:
        """Indices of the messages to send."""
        sent = {unit.id for unit in self.units} if not self.in_blocks else set[str]()
        return self.history.kept([unit for unit in self.history.units if unit.id in sent | self.newest])


class RouterMiddleware(AgentMiddleware[RouterState, Any]):
    """Decides at every model call whether the whole history is sent, parts of it, or what was quoted from it.

    A short history goes whole. Of a longer one go the newest conversations and the turns that share words with
    the question; or, with an `extractor`, quotes that it found block by block, as data in the system message.
    The system message, summaries, the last turns (about 2,000 tokens, a quarter of the room at most) and
    everything from the last question on are always sent; turns are kept or left out whole, so no tool call loses
    its result, and stay in their order. The state keeps every message: only the request is cut.

    A conversation is here a stretch of turns of about 2,000 tokens, the size that the router's thresholds were
    measured with. What was decided, why and at what cost is told under `stream_mode="custom"` as
    `{"remnant": {"event": "routed", ...}}`; texts are not.

    Args:
        model: the reader's window, prices and tier, or its window in tokens; None asks the chat model's profile.
        router: decides; with other thresholds, for example `ContextRouter(Settings(low=10))`.
        extractor: the chat model that reads blocks; None never reads blocks. What it quoted last stays in the
            memory of the process, so that the steps of a run do not pay for it again.
        budgets: limits of one call.
        allow_full: see `Request`.
        output_tokens: reserved for the answer.
        position: where quotes stand: `system`, or before the last question with `user`.

    Raises:
        ConfigError: an option that there is not; at the first call, a model whose window is neither given nor in
            its profile.

    Source: ConvoMem (Pakhomov et al. 2025); see `ContextRouter`.
    Example: create_agent(model, tools, middleware=[MemoryMiddleware("agent.db"), RouterMiddleware(Model(128_000))])
    """

    state_schema = RouterState

    def __init__(
        self,
        model: Model | int | None = None,
        *,
        router: ContextRouter | None = None,
        extractor: ChatModel | Runnable[Any, Any] | str | None = None,
        budgets: Budgets | None = None,
        allow_full: bool | None = None,
        output_tokens: int = 1000,
        position: Position = "system",
    ) -> None:
        """See the class."""
        super().__init__()
        if position not in ("system", "user"):
            raise unknown("position", str(position), ("system", "user"))
        self._model = Model(model) if isinstance(model, int) else model
        self._router = router or ContextRouter()
        self._extractor = as_llm(extractor)
        self._budgets, self._allow_full = budgets or Budgets(), allow_full
        self._output_tokens = output_tokens
        self._position: Position = position
        self._cache = Recent()
        self.tools = []

    @property
    def name(self) -> str:
        """`RemnantRouter`."""
        return "RemnantRouter"

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        """Send what the router decides."""
        plan = self._plan(request)
        quotes = None
        if self._extractor is not None and plan.in_blocks:
            quotes = extracted(self._extractor, plan.history.question, plan.in_blocks, plan.settings, self._cache)
        return self._done(request, plan, quotes, handler(self._prepared(request, plan, quotes)))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[Any]]
    ) -> Any:
        """See `wrap_model_call`; ranking happens in a thread, the extractor is awaited."""
        plan = await asyncio.to_thread(self._plan, request)
        quotes = None
        if self._extractor is not None and plan.in_blocks:
            quotes = await aextracted(
                self._extractor, plan.history.question, plan.in_blocks, plan.settings, self._cache
            )
        return self._done(request, plan, quotes, await handler(self._prepared(request, plan, quotes)))

    def _plan(self, request: ModelRequest[Any]) -> _Plan:
        reader = self._reader(request)
        settings = self._router.settings.for_model(reader.name)
        history = cut(request.messages, settings.tokens_per_conversation, _question(request.state))
        fixed = history.fixed_tokens + count_tokens(str(request.system_message.text) if request.system_message else "")
        room = max(0, reader.reliable_tokens - fixed)
        newest = history.newest(min(settings.tokens_per_conversation, room // 4))
        verbatim = sum(count_tokens(unit.text) for unit in history.units if unit.id in newest)
        asked = Request(
            history.question,
            history.conversations,
            history.tokens,
            replace(reader, max_reliable_tokens=room),
            budgets=self._budgets,
            index=Index(True, len(history.units), unindexed_tokens=verbatim, search_s=0.0),
            allow_full=self._allow_full,
            allow_blocks=self._extractor is not None,
            output_tokens=self._output_tokens,
        )
        decision = self._router.decide(asked, _last(request.state))
        words = terms(history.question)

        def search(n: int) -> Sequence[tuple[str, float]]:
            return rank(words, {unit.id: unit.text for unit in history.units})[:n]

        units = assemble(decision, history.units, search, settings, alike=None, unindexed=newest).units
        return _Plan(history, decision, units, frozenset(newest if units else ()), settings)

    def _reader(self, request: ModelRequest[Any]) -> Model:
        if self._model is not None:
            return self._model
        window = (request.model.profile or {}).get("max_input_tokens")
        if not isinstance(window, int) or window < 1:
            do = "pass RouterMiddleware(model=Model(window)), or the window in tokens"
            raise ConfigError("a chat model whose profile does not tell its window", do=do)
        return Model(window)

    def _prepared(self, request: ModelRequest[Any], plan: _Plan, quotes: Answer | None) -> ModelRequest[Any]:
        """The request as it is sent; the very same one where everything is."""
        kept = plan.kept()
        if request.runtime is not None:
            request.runtime.stream_writer({"remnant": {"event": "routed", **_told(plan, kept, request, quotes)}})
        if len(kept) < len(request.messages):
            request = request.override(messages=[request.messages[i] for i in kept])
        return request if quotes is None else with_block(request, as_block(quotes), self._position)

    def _done(self, request: ModelRequest[Any], plan: _Plan, quotes: Answer | None, response: Any) -> Any:
        """The response, with the decision for the state."""
        if isinstance(response, AIMessage):
            response = ModelResponse(result=[response])
        decision = plan.decision
        kept = {"mode": decision.mode.value, "why": decision.why, "zone": decision.zone}
        update = Command(update={"remnant_route": kept})
        if isinstance(response, ModelResponse):
            return ExtendedModelResponse(model_response=response, command=update)
        return response


def _question(state: Any) -> str:
    """The last question as it was asked; in the request, others may have put something before it."""
    messages = state.get("messages", []) if isinstance(state, dict) else []
    asked = [str(message.text) for message in messages if isinstance(message, HumanMessage)]
    return asked[-1] if asked else ""


def _last(state: Any) -> RouteDecision | None:
    """The decision of the call before, as far as hysteresis looks at it."""
    kept = state.get("remnant_route") if isinstance(state, dict) else None
    try:
        return (
            RouteDecision(Mode(kept["mode"]), str(kept["why"]), Cost(), 0.0, zone=int(kept["zone"])) if kept else None
        )
    except (KeyError, TypeError, ValueError):  # written by another release
        return None


def _told(plan: _Plan, kept: Sequence[int], request: ModelRequest[Any], quotes: Answer | None) -> dict[str, Any]:
    """A decision as an event: numbers and the reason, no texts."""
    decision = plan.decision
    told: dict[str, Any] = {
        "mode": decision.mode.value,
        "why": decision.why,
        "query_type": decision.query_type,
        "history_tokens": plan.history.tokens,
        "messages": len(kept),
        "of_messages": len(request.messages),
        "usd": decision.cost.usd,
        "latency_s": decision.cost.latency_s,
    }
    if quotes is not None:
        told |= {"quotes": len(quotes.items), "unread": len(quotes.missing), "calls": quotes.calls}
    return told
