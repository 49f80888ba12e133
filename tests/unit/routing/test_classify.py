"""Types of questions by their words."""

import pytest

from remnant.routing import QueryType, classify


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("What did you say about the lease?", QueryType.ASSISTANT_FACT),
        ("Which book have you recommended?", QueryType.ASSISTANT_FACT),
        ("When did you tell me that?", QueryType.ASSISTANT_FACT),  # who said it comes before when
        ("Do I still live in Rome?", QueryType.CHANGING),
        ("What is my current job?", QueryType.CHANGING),
        ("When did Ann move?", QueryType.TEMPORAL),
        ("How long has Bo been ill?", QueryType.TEMPORAL),
        ("Can you recommend a restaurant?", QueryType.PREFERENCE),
        ("What would Ann like for dinner?", QueryType.PREFERENCE),
        ("What do Ann and Bo have in common?", QueryType.MULTI_HOP),
        ("Where do I live?", QueryType.USER_FACT),
        ("HOW MANY cats has she?", QueryType.USER_FACT),
        ("I have a free evening.", QueryType.UNKNOWN),
        ("", QueryType.UNKNOWN),
    ],
)
def test_rules(query: str, kind: QueryType):
    assert classify(query) is kind
