"""The router: one decision per question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from remnant.routing.classify import Classifier, classify
from remnant.routing.decision import Cost, Mode, Option, Order, RouteDecision
from remnant.routing.feasible import effective_conversations, options, over_budget
from remnant.routing.policy import preferred, zone
from remnant.routing.request import QueryType, Request, query_type
from remnant.routing.settings import Settings

_TIMELY = (QueryType.CHANGING, QueryType.TEMPORAL)
_LADDER = (Mode.RAG, Mode.RECENT_PLUS_RAG, Mode.RETRIEVE_THEN_BLOCK, Mode.BLOCK_EXTRACT, Mode.FULL)
_NEXT = (Mode.RETRIEVE_THEN_BLOCK, Mode.FULL)


@dataclass(frozen=True)
class ContextRouter:
    """Decides whether to read the whole history, a mix, or what retrieval finds.

    Args:
        settings: thresholds and other constants, with overrides per model.
        classifier: asked for the type of a question where the rules find none; may answer None.

    Source: Pakhomov et al. 2025, ConvoMem. Differs: reliable lengths per model, prices of cached prefixes,
        hysteresis, and steps up after a poor answer in place of a fixed cut.
    Example: ContextRouter().decide(Request("Where do I live?", 12, 18_000, Model(128_000))).mode -> Mode.FULL
    """

    settings: Settings = field(default_factory=Settings)
    classifier: Classifier | None = None

    def decide(self, request: Request, last: RouteDecision | None = None) -> RouteDecision:
        """Choose a mode; the same request and last decision always give the same answer.

        A larger budget never gives a lower `p_answerable`: where the policy's choice is expected to do worse than
        its choice under a tighter budget, the latter is taken.

        Args:
            request: the question, history, models and limits.
            last: the decision before this one, for hysteresis.

        Returns:
            The decision. Mode NONE means that there is no history, or that no mode can be used; `why` says which.

        Raises:
            ConfigError: the classifier names no type, or an override of the model is wrong.
        """
        settings = self.settings.for_model(request.model.name)
        n = effective_conversations(request, settings)
        if request.n_conversations == 0:
            return RouteDecision(Mode.NONE, "there is no history", Cost(), 0.0)
        kind = self.type_of(request)
        where = zone(n, settings, None if last is None or last.mode is Mode.NONE else last.zone)
        found = options(request, settings, kind)
        mode, why = _choose(where, kind, request, settings, found)
        return _decision(mode, f"{why} ({n:.4g} conversations in effect)", kind, where, found, request, settings)

    def type_of(self, request: Request) -> QueryType:
        """The type of a request's question: as told, by the rules, by the classifier, or the safer default.

        The default is `implicit` above the lower threshold, and `user_fact` below.
        """
        if request.query_type is not QueryType.UNKNOWN:
            return request.query_type
        kind = classify(request.query)
        if kind is QueryType.UNKNOWN and self.classifier is not None:
            kind = query_type(self.classifier(request.query) or QueryType.UNKNOWN)
        if kind is not QueryType.UNKNOWN:
            return kind
        settings = self.settings.for_model(request.model.name)
        longer = effective_conversations(request, settings) > settings.low
        return QueryType.IMPLICIT if longer else QueryType.USER_FACT

    def measured(self, request: Request, history_tokens: int, last: RouteDecision | None = None) -> RouteDecision:
        """Decide again with the tokens that the prompt really had; never cut a prompt instead.

        Args:
            request: the request as it was.
            history_tokens: tokens of the history, counted by the model's own tokenizer.
            last: the decision that overran.
        """
        return self.decide(replace(request, history_tokens=history_tokens), last)

    def escalate(self, request: Request, decision: RouteDecision) -> RouteDecision | None:
        """The next step up after a poor answer; None says abstain.

        Args:
            request: the request that was decided.
            decision: the decision whose answer was poor; its `escalation` names what is left.
        """
        if not decision.escalation:
            return None
        settings = self.settings.for_model(request.model.name)
        kind = query_type(decision.query_type)
        found = {option.mode: option for option in decision.considered}
        why = f"step up from {decision.mode.value}: its answer was poor"
        step = _decision(decision.escalation[0], why, kind, decision.zone, found, request, settings)
        return replace(step, escalation=decision.escalation[1:])


def should_escalate(p_answerable: float, *, all_blocks_empty: bool = False, top_percentile: float = 0.0) -> bool:
    """Whether an answer is too doubtful to keep.

    Args:
        p_answerable: the answer's own confidence, 0 to 1.
        all_blocks_empty: no block held anything relevant.
        top_percentile: where the retriever's best score lies among its usual best scores, 0 to 1.

    Returns:
        True below one half, and where every block was empty although the retriever was sure (above 0.8).
    """
    return p_answerable < 0.5 or (all_blocks_empty and top_percentile > 0.8)


def _choose(
    where: int, kind: QueryType, request: Request, settings: Settings, found: Mapping[Mode, Option]
) -> tuple[Mode, str]:
    """The policy's mode, unless a tighter budget would have led to a better one."""
    ranked = preferred(where, kind, request, settings, found)
    mode, why = _first(ranked, found)
    best = mode
    for usd, latency in _tighter(found):
        fit = (name for name, _ in ranked if _fits(found[name], usd, latency))
        other = next(fit, Mode.NONE)
        if found[other].p_answerable > found[best].p_answerable:
            best = other
    if best is mode:
        return mode, why
    share = f"{found[best].p_answerable:.0%} against {found[mode].p_answerable:.0%}"
    return best, f"{dict(ranked)[best]}; expected to answer more than {mode.value}, {share}"


def _tighter(found: Mapping[Mode, Option]) -> list[tuple[float, float]]:
    """Every pair of budgets (USD, seconds) at which the set of possible modes changes."""
    costs = [option.cost for option in found.values() if not option.obstacle]
    return sorted(product({0.0, *(cost.usd for cost in costs)}, {0.0, *(cost.latency_s for cost in costs)}))


def _fits(option: Option, usd: float, latency_s: float) -> bool:
    """Whether a mode is possible under tighter budgets; plain retrieval always remains."""
    if option.obstacle or option.mode is Mode.RAG:
        return not option.obstacle
    return option.cost.usd <= usd and option.cost.latency_s <= latency_s


def _first(ranked: Sequence[tuple[Mode, str]], found: Mapping[Mode, Option]) -> tuple[Mode, str]:
    """The first possible mode, with what stood against those before it."""
    against: list[str] = []
    for mode, why in ranked:
        if not found[mode].obstacle:
            return mode, "; ".join([*against, why])
        against.append(f"no {mode.value}: {found[mode].obstacle}")
    return Mode.NONE, "; ".join(["no mode can be used", *against])


def _decision(
    mode: Mode,
    why: str,
    kind: QueryType,
    where: int,
    found: Mapping[Mode, Option],
    request: Request,
    settings: Settings,
) -> RouteDecision:
    option = found[mode]
    timely = kind in _TIMELY
    ranked = mode in (Mode.RAG, Mode.RECENT_PLUS_RAG) and not timely
    blocks = mode in (Mode.BLOCK_EXTRACT, Mode.RETRIEVE_THEN_BLOCK)
    if excess := over_budget(option.cost, request.budgets.usd, request.budgets.latency_s):
        why = f"{why}; over budget ({excess}), for want of anything cheaper"
    return RouteDecision(
        mode=mode,
        why=why,
        cost=option.cost,
        p_answerable=option.p_answerable,
        k=option.k,
        block_size=settings.block if blocks else 0,
        reorder=ranked,
        order=Order.RELEVANCE if ranked else Order.CHRONOLOGICAL,
        escalation=_steps(mode, found, request, settings),
        zone=where,
        query_type=kind.value,
        considered=tuple(found.values()),
    )


def _steps(mode: Mode, found: Mapping[Mode, Option], request: Request, settings: Settings) -> tuple[Mode, ...]:
    """The steps up that can still be paid after this mode."""
    if mode not in _LADDER:
        return ()
    usd, latency, steps = found[mode].cost.usd, found[mode].cost.latency_s, list[Mode]()
    for step in _NEXT:
        option = found[step]
        above = _LADDER.index(step) > _LADDER.index(mode)
        if not above or option.obstacle or len(steps) == settings.max_escalations:
            continue
        spent = replace(option.cost, usd=usd + option.cost.usd, latency_s=latency + option.cost.latency_s)
        if not over_budget(spent, request.budgets.usd, request.budgets.latency_s):
            usd, latency = spent.usd, spent.latency_s
            steps.append(step)
    return tuple(steps)
