"""What a question asks for, told by rules from its words."""

from __future__ import annotations

import re
from collections.abc import Callable

from remnant.routing.request import QueryType

Classifier = Callable[[str], "QueryType | str | None"]

# First match wins. What somebody said is asked before when: "when did you say" is about the assistant.
_RULES = (
    (
        QueryType.ASSISTANT_FACT,
        r"\b(did|have|had) you (ever |just |already )?(say|said|tell|told|recommend\w*|suggest\w*|mention\w*|advise\w*"
        r"|explain\w*)|\byou (said|told|recommended|suggested|mentioned|advised)\b|\byour (advice|suggestion)\b",
    ),
    (
        QueryType.CHANGING,
        r"\b(still|now|nowadays|currently|current|latest|any ?more|no longer|these days|changed?|as of|up to date)\b",
    ),
    (
        QueryType.TEMPORAL,
        r"\b(when|how long|how often|what (date|day|month|year|time)|which (day|month|year)|since when|before|after"
        r"|last (week|month|year|time)|ago|first time)\b",
    ),
    (
        QueryType.PREFERENCE,
        r"\b(prefer\w*|recommend\w*|suggest\w*|favou?rite|(would|might|do|does) (i|he|she|they|we|\w+) (like|enjoy)"
        r"|what should i)\b",
    ),
    (
        QueryType.MULTI_HOP,
        r"\b(both|in common|how many (different|times)|compare[ds]?|all (of )?the|list (all|every)|which of)\b",
    ),
    (QueryType.USER_FACT, r"^\W*(what|who|whom|whose|where|which|how (much|many|old|tall|far))\b"),
)
_COMPILED = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _RULES)


def classify(query: str) -> QueryType:
    """The type of a question by its words.

    Args:
        query: the question, in English; others mostly stay UNKNOWN.

    Returns:
        The type of the first rule that matches; UNKNOWN where none does.

    Source: ConvoMem's categories (Pakhomov et al. 2025); the rules are ours.
    Example: classify("When did Ann move?") -> QueryType.TEMPORAL
    """
    return next((kind for kind, pattern in _COMPILED if pattern.search(query)), QueryType.UNKNOWN)
