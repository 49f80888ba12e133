"""An episode as text for a prompt, how far to trust what it says, and texts compared."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from remnant.index.words import terms
from remnant.memory.episode import Episode
from remnant.memory.record import Trust
from remnant.memory.strategy import DistilContext

MOST_CHARS = 40_000
"""Characters of one episode in a prompt at most; the middle goes first, since ends hold the task and its outcome."""

LEAST_FIRST: tuple[Trust, ...] = ("web", "tool", "agent", "user", "system")
"""Levels of trust, the least first: what is made from several sources is trusted as the least of them."""

_TOOLS = ("tool", "function")
_USERS = ("user", "human")


def transcript(episode: Episode, most: int = MOST_CHARS) -> str:
    """Task and steps, every line begun with `| ` so that none passes for a line of our prompt.

    What memory itself put into the episode is left out: it is not learnt again.
    """
    steps = [_step(number, step) for number, step in enumerate(episode.steps, 1) if not step.get("injected")]
    return quoted("\n".join((f"task: {episode.task}", *steps)), most)


def quoted(text: str, most: int = MOST_CHARS) -> str:
    """A text of others in a prompt: every line begun with `| `, its middle left out where it is too long."""
    if len(text) > most:
        text = f"{text[: most // 2]}\n(... {len(text) - most} characters left out ...)\n{text[-(most - most // 2) :]}"
    return "\n".join(f"| {line}" for line in text.splitlines())


def heard(episodes: Iterable[Episode]) -> list[Mapping[str, Any]]:
    """The steps of episodes without what memory itself put into them."""
    return [step for episode in episodes for step in episode.steps if not step.get("injected")]


def step_trust(step: Mapping[str, Any]) -> Trust:
    """Whose words a step is: by its role, or `web` where it says so."""
    role = step.get("role", "")
    if step.get("trust") == "web" or role == "web":
        return "web"
    return "user" if role in _USERS else "tool" if role in _TOOLS or step.get("trust") == "tool" else "agent"


def least(levels: Iterable[Trust]) -> Trust:
    """The least of some levels of trust."""
    given = set(levels)
    return next(level for level in LEAST_FIRST if level in given)


def learnt_trust(episodes: Sequence[Episode], *, trust_tools: bool = False) -> Trust:
    """The trust of what a model concludes from episodes: that of their least trusted step, `agent` at most.

    Args:
        episodes: what it concludes from.
        trust_tools: the agent's tools are its owner's, so their words count as the agent's.
    """
    levels: set[Trust] = {"agent", *(step_trust(step) for episode in episodes for step in episode.steps)}
    return least(levels - {"tool"} if trust_tools else levels)


def clipped(text: str, most: int) -> str:
    """A text without space around it, cut to a number of characters."""
    text = text.strip()
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def plain(text: str) -> str:
    """A text for comparing: case and spacing do not count."""
    return " ".join(text.split()).casefold()


def names(value: object) -> tuple[str, ...]:
    """The texts in a list out of a payload, whatever else somebody imported there."""
    if not isinstance(value, (list, tuple)):
        return ()
    return tuple(item for item in cast("Sequence[object]", value) if isinstance(item, str))


def likeness(context: DistilContext, text: str, others: Sequence[str]) -> list[float]:
    """The cosine of a text with each of several: of their meanings or, without an embedder, of their words."""
    if not others:
        return []
    if context.embed is None:
        return [_cosine(Counter(terms(text)), Counter(terms(other))) for other in others]
    first, *rest = context.embed([text, *others])
    return [sum(a * b for a, b in zip(first, other, strict=True)) for other in rest]


def _cosine(one: Counter[str], two: Counter[str]) -> float:
    size = math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in two.values()))
    return sum(n * two[word] for word, n in one.items()) / size if size else 0.0


def _step(number: int, step: Mapping[str, Any]) -> str:
    text = step.get("content") or step.get("text")
    rest = {name: item for name, item in step.items() if name not in ("role", "content", "text", "trust")}
    parts = [text] if isinstance(text, str) else []
    if rest or not parts:
        parts.append(json.dumps(rest or {"content": text}, default=str, ensure_ascii=False))
    return f"{number}. {step.get('role', 'agent')}: {' '.join(parts)}"
