"""From a decision to what the prompt holds: every mode picks, cuts and orders the units of a history here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from remnant.routing.calibrate import drop_weak
from remnant.routing.collapse import collapse
from remnant.routing.decision import Mode, Order, RouteDecision
from remnant.routing.history import Conversation
from remnant.routing.reorder import chronological, reorder
from remnant.routing.request import count_tokens
from remnant.routing.settings import Settings

Search = Callable[[int], Sequence[tuple[str, float]]]
"""(n) -> (id of a unit, score) of the n best units for the question, best first."""


@dataclass(frozen=True)
class Unit:
    """A piece of a history that goes into a prompt whole: a message, a turn, a record.

    Args:
        id: names it.
        conversation: the conversation it belongs to.
        text: its words.
        date: when, as text that sorts by time; empty is unknown. The order of time is the order of the units.
    """

    id: str
    conversation: str
    text: str
    date: str = ""


@dataclass(frozen=True)
class Assembled:
    """What a prompt holds.

    Args:
        mode: how it was put together.
        units: in the order of the prompt; in the modes that read blocks, those of all blocks.
        found: ids of the units that were retrieved, best first, among `units`.
        conversations: what is to be read in blocks, oldest first; empty in the other modes.
        top: the best score that retrieval gave; None where nothing was searched or found.
        dropped: retrieved units left out because they were weak, or said what another one says.
    """

    mode: Mode
    units: tuple[Unit, ...] = ()
    found: tuple[str, ...] = ()
    conversations: tuple[Conversation, ...] = ()
    top: float | None = None
    dropped: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of the units, estimated."""
        return sum(count_tokens(unit.text) for unit in self.units)

    @property
    def text(self) -> str:
        """The units as text, with a line that names the conversation wherever it changes."""
        lines: list[str] = []
        last = None
        for unit in self.units:
            if unit.conversation != last:
                lines.append(f"[{' '.join(part for part in (unit.conversation, unit.date) if part)}]")
                last = unit.conversation
            lines.append(unit.text)
        return "\n".join(lines)


def assemble(
    decision: RouteDecision,
    units: Sequence[Unit],
    search: Search,
    settings: Settings | None = None,
    *,
    alike: float | None = 0.95,
    tau: float | None = None,
    unindexed: Collection[str] = (),
) -> Assembled:
    """Put together what a decision asks for.

    Args:
        decision: the router's.
        units: the whole history, oldest first.
        search: finds units; not called in modes that read everything.
        settings: recent conversations and the like; None is the default.
        alike: see `collapse`; None keeps passages that say the same.
        tau: see `drop_weak`; None keeps weak passages. With 0.5 and a search by words, 13 points of LoCoMo's
            evidence were lost (`remnant bench routing`), so calibrate it for a retriever before using it.
        unindexed: ids of units that `search` cannot know yet; they are kept verbatim.

    Returns:
        Every unit once. Passages are laid out as the decision says: the best at both ends, or by time with
        the best conversation last; what is verbatim follows them, oldest first.

    Source: specification of Remnant's router, sections 2.1, 2.2 and 3.3.
    """
    settings = settings or Settings()
    mode = decision.mode
    if mode is Mode.NONE:
        return Assembled(mode)
    if mode is Mode.FULL:
        return Assembled(mode, tuple(units))
    if mode is Mode.BLOCK_EXTRACT:
        return Assembled(mode, tuple(units), conversations=joined(units))
    if mode is Mode.RETRIEVE_THEN_BLOCK:
        return _best_conversations(decision, units, search, settings)
    return _passages(decision, units, search, _verbatim(decision, units, settings, unindexed), alike, tau)


def wanted(
    decision: RouteDecision, units: Sequence[Unit], settings: Settings | None = None, unindexed: Collection[str] = ()
) -> int:
    """How many hits `assemble` will ask for; 0 where it does not search. For callers that search beforehand."""
    if decision.mode is Mode.RETRIEVE_THEN_BLOCK:
        return len(units)
    if decision.mode not in (Mode.RAG, Mode.RECENT_PLUS_RAG):
        return 0
    return 2 * decision.k + len(_verbatim(decision, units, settings or Settings(), unindexed))


def joined(units: Sequence[Unit]) -> tuple[Conversation, ...]:
    """The units as conversations, in the order in which these begin."""
    parts: dict[str, list[Unit]] = {}
    for unit in units:
        parts.setdefault(unit.conversation, []).append(unit)
    return tuple(Conversation(id, "\n".join(unit.text for unit in part), part[0].date) for id, part in parts.items())


def _verbatim(
    decision: RouteDecision, units: Sequence[Unit], settings: Settings, unindexed: Collection[str]
) -> set[str]:
    """Units that are kept whatever retrieval says: those of the conversations spoken in last, and new ones."""
    count = settings.recent if decision.mode is Mode.RECENT_PLUS_RAG else 0
    newest = set(list(dict.fromkeys(unit.conversation for unit in reversed(units)))[:count])
    return {unit.id for unit in units if unit.conversation in newest or unit.id in unindexed}


def _passages(
    decision: RouteDecision,
    units: Sequence[Unit],
    search: Search,
    verbatim: Collection[str],
    alike: float | None,
    tau: float | None,
) -> Assembled:
    place = {unit.id: i for i, unit in enumerate(units)}
    ranked = [(id, score) for id, score in search(2 * decision.k + len(verbatim)) if id in place]
    top = ranked[0][1] if ranked else None
    others = [(id, score) for id, score in ranked if id not in verbatim][: 2 * decision.k]
    strong = others if tau is None else drop_weak(others, tau)
    single = [units[place[id]] for id, _ in strong]
    if alike is not None:
        single = collapse(single, text=lambda unit: unit.text, when=lambda unit: place[unit.id], alike=alike)
    best = single[: decision.k]
    dropped = min(decision.k, len(others)) - len(best)
    kept = tuple(unit for unit in units if unit.id in verbatim)
    laid_out = _laid_out(best, decision, place)
    return Assembled(
        decision.mode, (*laid_out, *kept), tuple(unit.id for unit in best), top=top, dropped=max(0, dropped)
    )


def _laid_out(best: Sequence[Unit], decision: RouteDecision, place: dict[str, int]) -> list[Unit]:
    if decision.order is Order.CHRONOLOGICAL:
        return chronological(best, lambda unit: place[unit.id], lambda unit: unit.conversation)
    return reorder(best) if decision.reorder else list(best)


def _best_conversations(
    decision: RouteDecision, units: Sequence[Unit], search: Search, settings: Settings
) -> Assembled:
    """The conversations with the best units, then the newest: a question may share no word with its evidence.

    All units are searched, since one conversation may hold many good ones.
    """
    of = {unit.id: unit.conversation for unit in units}
    ranked = [(id, score) for id, score in search(len(units)) if id in of]
    best = dict.fromkeys(of[id] for id, _ in ranked)
    newest = dict.fromkeys(unit.conversation for unit in reversed(units))
    chosen = list(best | newest)[: decision.k or settings.conversations]
    kept = tuple(unit for unit in units if unit.conversation in set(chosen))
    found = tuple(id for id, _ in ranked if of[id] in set(chosen))
    return Assembled(decision.mode, kept, found, joined(kept), ranked[0][1] if ranked else None)
