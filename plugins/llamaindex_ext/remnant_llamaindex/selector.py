"""`RoutedSelector`: which of some query engines answers, by the router and without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import QueryBundle
from llama_index.core.tools.types import ToolMetadata

from remnant.errors import ConfigError
from remnant.routing import ContextRouter, Mode, Request, RouteDecision


class RoutedSelector(BaseSelector):
    """Selects among LlamaIndex's choices by a decision of `ContextRouter`, for `RouterQueryEngine` and its like.

    A choice stands for the mode that its metadata's name is (`full`, `rag`, ...), or for that at its place in `modes`.
    Where none stands for the mode that was decided, the one expected to answer best among those that nothing stands
    against is selected, and the reason says so.

    Args:
        request: question -> what the router is asked; counts the history.
        modes: the mode of each choice, in order; None goes by names.
        router: decides.
    """

    def __init__(
        self,
        request: Callable[[str], Request],
        modes: Sequence[Mode | str] | None = None,
        router: ContextRouter | None = None,
    ) -> None:
        """See the class."""
        self._request, self._router = request, router or ContextRouter()
        self._modes = None if modes is None else [_mode(mode) for mode in modes]
        self.last: RouteDecision | None = None
        """The last decision, to which the next one sticks near a threshold."""

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        """There are none."""

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        modes = self._modes or [_mode(choice.name or "") for choice in choices]
        if len(modes) != len(choices):
            raise ConfigError(f"{len(modes)} modes for {len(choices)} choices", accepted="one each")
        decision = self._router.decide(self._request(query.query_str), self.last)
        self.last = decision
        index, why = _nearest(decision, modes)
        return SelectorResult(selections=[SingleSelection(index=index, reason=why)])

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        return self._select(choices, query)


def _nearest(decision: RouteDecision, modes: Sequence[Mode]) -> tuple[int, str]:
    """The place of the decided mode, or of the best one that is offered, and why."""
    told = f"{decision.mode.value}: {decision.why}"
    if decision.mode in modes:
        return modes.index(decision.mode), told
    seen = {option.mode: option for option in decision.considered}
    free = [mode for mode in modes if mode in seen and not seen[mode].obstacle]
    if not free:
        return 0, f"{told}; it is not among the choices, and nothing is known for any of them"
    best = max(free, key=lambda mode: (seen[mode].p_answerable, -seen[mode].cost.usd))
    return modes.index(best), f"{told}; it is not among the choices, {best.value} is the best of them"


def _mode(name: Mode | str) -> Mode:
    try:
        return Mode(name)
    except ValueError:
        accepted = [mode.value for mode in Mode]
        raise ConfigError(
            f"a choice named {name!r}", accepted=accepted, do="name the choices, or pass modes="
        ) from None
