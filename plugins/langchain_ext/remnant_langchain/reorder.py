"""Documents in the order that a long prompt reads best: the best at both ends, the weakest in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import BaseDocumentTransformer, Document

from remnant.errors import ConfigError
from remnant.routing import collapse, reorder


class ReorderDocuments(BaseDocumentTransformer):
    """Puts the best-ranked documents at both ends of the prompt.

    Documents come best first, as every retriever gives them; the best leaves first and the second best last,
    whatever their number (LangChain's `LongContextReorder` puts the best first or last by parity).
    Its methods fit wherever functions do: `retriever | ReorderDocuments().transform_documents`.

    Args:
        k: how many of the best to keep; None keeps all.
        alike: cosine of two texts' words from which on they say the same, so that the newer one alone is kept,
            in the better one's place; None keeps both.
        newer: the metadata field that tells which of two is newer; documents without it count as older.

    Raises:
        ConfigError: `k` is below 1, or `alike` is no cosine.

    Source: Jin et al. 2025, Long-Context LLMs Meet RAG (ICLR); see `remnant.routing.reorder` and `collapse`.
    """

    def __init__(self, k: int | None = None, *, alike: float | None = None, newer: str = "created_at") -> None:
        """See the class."""
        if k is not None and k < 1:
            raise ConfigError(f"k {k}", accepted="1 or more, or None")
        if alike is not None and not 0 < alike <= 1:
            raise ConfigError(f"alike {alike}", accepted="above 0, up to 1, or None")
        self.k, self.alike, self.newer = k, alike, newer

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """The documents in their new order; none is changed."""
        kept = list(documents)
        if self.alike is not None:
            kept = collapse(kept, text=lambda d: d.page_content, when=self._age, alike=self.alike)
        return reorder(kept, self.k)

    async def atransform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """See `transform_documents`; it takes microseconds a document, so no thread is asked."""
        return self.transform_documents(documents)

    def _age(self, document: Document) -> tuple[bool, Any]:
        found = document.metadata.get(self.newer)
        return (found is not None, found if found is not None else 0)
