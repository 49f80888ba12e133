"""Think-in-Memory: conclusions instead of turns, so that the same past is not thought through for every question.

Source: TiM (Liu et al. 2023, arXiv 2311.08719): insert, forget and merge thoughts after the answer, group by group.
Differs: a group is the hash buckets of what is new together with all thoughts about the same thing, where the paper has
one bucket and misses what fell into another; without an embedder, and where buckets are nearly empty, the store's own
index fills it. A contradicted thought ends in time instead of vanishing.

| call | answer |
| --- | --- |
| `extract` | `{"thoughts": [{"head": "Ada", "relation": "lives in", "tail": "Rome", "text": "Ada lives in Rome."}]}` |
| `forget` | `{"remove": [{"note": "t1", "by": "t4", "reason": "..."}]}`: `by` is one marked (new) |
| `merge` | `{"groups": [{"notes": ["t1", "t2"], "text": "..."}]}` |
"""

from __future__ import annotations

from collections.abc import Sequence

from remnant.memory.episode import Episode
from remnant.memory.ops import Op
from remnant.memory.record import Record
from remnant.memory.rounds import LEARNT
from remnant.memory.strategies.base import Base, experience
from remnant.memory.strategies.thoughts import EXTRACT, FORGET, MERGE, Tidying
from remnant.memory.strategies.trace import heard, learnt_trust, names, transcript
from remnant.memory.strategy import DistilContext, IndexText


class Tim(Base):
    """See the module.

    Args:
        neighbours: stored thoughts that a group has at most, besides the new ones.
    """

    name = "tim"
    version = "2"
    calls = (EXTRACT, FORGET, MERGE)

    def __init__(self, neighbours: int = 20) -> None:
        """See the class."""
        self._neighbours = neighbours

    def index_text(self, record: Record) -> IndexText:
        """The thought; words: also its hash keys."""
        found = super().index_text(record)
        return IndexText(" ".join((found.words, *names(record.payload.get("buckets")))), found.meaning)

    def distil(self, episodes: Sequence[Episode], context: DistilContext) -> Sequence[Op]:
        """New thoughts, ends of contradicted ones, and merges; none without a model.

        Raises:
            StructuredError: the model gave no valid thoughts; the episode is tried again later.
        """
        model = context.model
        if model is None or not heard(episodes):
            return []
        told = "\n\n".join(transcript(episode) for episode in episodes)
        answer = EXTRACT.ask(model, told)
        own = experience(episodes)
        base = Record(
            "-",
            kind="thought",
            trust=learnt_trust(episodes),
            provenance=self.written_by(model),
            payload={LEARNT: {own: {}}},
        )
        tidying = Tidying(model, context, base, own, self._neighbours)
        for head in tidying.insert(answer.thoughts):
            tidying.tidy(head)
        return tidying.ops()
