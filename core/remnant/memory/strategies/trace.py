"""What strategies share: an episode as text for a prompt, how far to trust it, and what is known already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from remnant.memory.episode import Episode
from remnant.memory.record import Hit, Provenance, Trust
from remnant.memory.strategy import DistilContext

MOST_CHARS = 40_000
"""Characters of one episode in a prompt at most; the middle goes first, since ends hold the task and its outcome."""

_WEB = ("web",)
_TOOLS = ("tool", "function")


def transcript(episode: Episode, most: int = MOST_CHARS) -> str:
    """Task and steps, every line begun with `| ` so that none passes for a line of our prompt.

    What memory itself put into the episode is left out: it is not learnt again.
    """
    steps = [_step(number, step) for number, step in enumerate(episode.steps, 1) if not step.get("injected")]
    text = "\n".join((f"task: {episode.task}", *steps))
    if len(text) > most:
        text = f"{text[: most // 2]}\n(... {len(text) - most} characters left out ...)\n{text[-(most - most // 2) :]}"
    return "\n".join(f"| {line}" for line in text.splitlines())


def learnt_trust(episodes: Sequence[Episode], *, trust_tools: bool = False) -> Trust:
    """The trust of what a model concludes from episodes: that of their least trusted step, `agent` at most.

    Args:
        episodes: what it concludes from.
        trust_tools: the agent's tools are its owner's, so their words count as the agent's.
    """
    roles = {str(step.get(key, "")) for episode in episodes for step in episode.steps for key in ("role", "trust")}
    if roles.intersection(_WEB):
        return "web"
    return "tool" if roles.intersection(_TOOLS) and not trust_tools else "agent"


def experience(episodes: Sequence[Episode]) -> str:
    """The name of what is distilled together: a group's, or the episode's id."""
    return (len(episodes) > 1 and episodes[0].group) or episodes[0].id


def known(context: DistilContext, text: str, k: int, kind: str, own: str) -> list[Hit]:
    """Stored records of a kind near a text, without those of this very experience.

    A late verdict distils anew while the first result still stands, to be taken back with the new
    one's arrival; an operation on it would fail.
    """
    hits = context.recall(text, k) if text.strip() else []
    return [hit for hit in hits if hit.record.kind == kind and hit.record.payload.get("experience") != own]


def by_model(strategy: str, version: str, model_id: str) -> tuple[Provenance, ...]:
    """The source of a record that a model wrote for a strategy."""
    return (Provenance("model", author=strategy, model_id=model_id, prompt_version=f"{strategy}-{version}"),)


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


def _step(number: int, step: Mapping[str, Any]) -> str:
    text = step.get("content") or step.get("text")
    rest = {name: item for name, item in step.items() if name not in ("role", "content", "text", "trust")}
    parts = [text] if isinstance(text, str) else []
    if rest or not parts:
        parts.append(json.dumps(rest or {"content": text}, default=str, ensure_ascii=False))
    return f"{number}. {step.get('role', 'agent')}: {' '.join(parts)}"
