"""Which passages answer a question: by words, by meaning, by both, or whatever a framework's retriever says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from remnant.errors import ConfigError
from remnant.index import check_index, chosen, make_index, mix, pack, rank, terms

__all__ = ["Passage", "asked_of", "distinct", "in_order", "scores"]


@dataclass(frozen=True)
class Passage:
    """A piece of text that was found.

    Attributes:
        text: as it stands in the document.
        score: similarity to the question; None where the retriever gave none.
        start: place in its document, in characters; None where that is not known.
        source: of which document; empty where that is not known.
    """

    text: str
    score: float | None = None
    start: int | None = None
    source: str = ""


def scores(question: str, texts: Sequence[str], index: str | None = None, embedder: Any = None) -> list[float]:
    """Similarity of every text to the question.

    Args:
        question: what is asked.
        texts: the passages.
        index: `words` (BM25 as a share of the best passage's), a vector index of `remnant.index` such as `exact`
            (cosine), or `hybrid`, the mean of both with cosines stretched to 0..1; None takes `hybrid` where an
            embedder is given and `words` where not.
        embedder: after `remnant.memory.llm.Embedder`; for all but `words`.

    Returns:
        One number per text; 0 for one that the index did not find.

    Raises:
        ConfigError: an unknown index, or one that needs an embedder.
    """
    kind = index or ("words" if embedder is None else "hybrid")
    if kind not in ("words", "hybrid"):
        check_index(kind)
    if kind != "words" and embedder is None:
        raise ConfigError(f"index {kind!r} without an embedder", do="give embedder=, or take index='words'")
    if not texts:
        return []
    names = [str(i) for i in range(len(texts))]
    words = dict(rank(terms(question), dict(zip(names, texts, strict=True)))) if kind in ("words", "hybrid") else {}
    if kind == "words" or embedder is None:
        top = max(words.values(), default=0.0) or 1.0
        return [words.get(name, 0.0) / top for name in names]
    rows = pack([*embedder.embed(list(texts), kind="document"), *embedder.embed([question], kind="query")])
    vectors = make_index("exact" if kind == "hybrid" else chosen(kind, len(texts)), len(rows[0]) // 4)
    vectors.load(list(zip(names, rows[:-1], strict=True)))
    found = vectors.search(rows[-1], len(texts))
    of = dict(found.best)
    if kind == "hybrid":
        of = {scored.id: scored.score for scored in mix(of, words, 0.5, found.low, found.high)}
    return [of.get(name, 0.0) for name in names]


def distinct(texts: Sequence[str]) -> list[int]:
    """Places of the texts that are not a repetition of an earlier one, blanks aside."""
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        seen.setdefault(" ".join(text.split()), i)
    return list(seen.values())


def in_order(passages: Sequence[Passage], document: str) -> list[Passage]:
    """Passages as the document has them.

    By their place where they have one, else by where the document holds their text; what it does not hold comes last,
    as it was given. Passages of one source stay together.
    """
    sources = list(dict.fromkeys(p.source for p in passages))

    def place(i: int) -> tuple[int, int, int]:
        p = passages[i]
        at = p.start if p.start is not None else document.find(p.text)
        return sources.index(p.source), at if at >= 0 else len(document), i

    return [passages[i] for i in sorted(range(len(passages)), key=place)]


def asked_of(retriever: Any) -> Callable[[str], list[Passage]]:
    """A retriever of LangChain or LlamaIndex, or a function from a question to texts, as one from it to passages.

    Args:
        retriever: has `invoke` or `get_relevant_documents` (documents with `page_content`), or `retrieve` (nodes), or
            is called itself.

    Returns:
        A function; its passages come in the retriever's order.

    Raises:
        ConfigError: it is none of these, or what it gives is not text.
    """
    for name in ("invoke", "get_relevant_documents", "retrieve", "__call__"):
        ask = getattr(retriever, name, None)
        if callable(ask):
            return lambda question: [_passage(item) for item in _listed(ask(question), retriever)]
    raise ConfigError(
        f"retriever {type(retriever).__name__}",
        accepted="a retriever of LangChain or LlamaIndex, or a function from a question to a list of texts",
    )


def _listed(found: Any, retriever: Any) -> Sequence[Any]:
    if not isinstance(found, (list, tuple)):
        raise ConfigError(f"{type(retriever).__name__} gave {type(found).__name__}", accepted="a list of passages")
    return list(found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _passage(item: Any) -> Passage:
    """A text, a document of LangChain, or a node of LlamaIndex, bare or with its score."""
    if isinstance(item, (str, Passage)):
        return Passage(item) if isinstance(item, str) else item
    node = getattr(item, "node", item)
    text = getattr(node, "page_content", None)
    if text is None:
        content = getattr(node, "get_content", None)
        text = content() if callable(content) else getattr(node, "text", None)
    if not isinstance(text, str):
        raise ConfigError(f"a passage of {type(item).__name__}", accepted="text, a document or a node")
    meta: dict[str, Any] = getattr(node, "metadata", None) or {}
    start = meta.get("start_index", getattr(node, "start_char_idx", None))
    score = getattr(item, "score", None)
    source = meta.get("source") or getattr(node, "ref_doc_id", None) or ""
    return Passage(
        text,
        float(score) if score is not None else None,
        int(start) if start is not None else None,
        re.sub(r"\s+", " ", str(source)),
    )
