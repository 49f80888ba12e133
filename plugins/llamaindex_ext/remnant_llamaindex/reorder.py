"""`ReorderNodes`: the best passages at both ends of the prompt, in LlamaIndex's query engines."""

from __future__ import annotations

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

from remnant.routing import reorder


class ReorderNodes(BaseNodePostprocessor):
    """Put the best-ranked nodes at both ends and the weakest in the middle.

    The best is first and the second best last, for odd and for even counts; LlamaIndex's `LongContextReorder` puts the
    best first or last by the count's parity.

    Args:
        k: how many of the best to keep; None keeps all.

    Source: `remnant.routing.reorder`.
    """

    k: int | None = None

    @classmethod
    def class_name(cls) -> str:
        """The name of the class, for LlamaIndex."""
        return "ReorderNodes"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return reorder(ranked(nodes), self.k)


def ranked(nodes: list[NodeWithScore]) -> list[NodeWithScore]:
    """The nodes by score, best first; in the order given where one has none."""
    if any(node.score is None for node in nodes):
        return list(nodes)
    return sorted(nodes, key=lambda node: -(node.score or 0.0))
