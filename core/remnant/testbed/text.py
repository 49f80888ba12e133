"""Real English text that every Python ships: `pydoc_data.topics` and the standard library's docstrings.

The split is by name, not by position, so a document held out here is held out on every Python version
and a perplexity never counts a sentence that was trained on.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

__all__ = ["Corpus", "load_corpus", "load_held_out"]

_SKIP = {"test", "tests", "idlelib", "site-packages", "lib2to3", "__pycache__", "turtledemo", "ensurepip"}
_HELD_OUT_EVERY = 10
_MIN_CHARS = 120


@dataclass(frozen=True)
class Corpus:
    """Documents by split; `sha256` fingerprints both splits so that a result names its data."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    sha256: str


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topic:{name}", topics[name]


def _docstrings_of(source: str) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            doc = ast.get_docstring(node)
            if doc:
                yield doc


def _modules(held_out_only: bool = False) -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIP.intersection(relative.parts) or relative.parts[0] == "pydoc_data":
            continue
        if held_out_only and not _is_held_out(f"module:{relative.as_posix()}"):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            docs = list(_docstrings_of(source))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # a template or a deliberately broken file holds no prose
        text = "\n\n".join(docs)
        if len(text) >= _MIN_CHARS:
            yield f"module:{relative.as_posix()}", text


def _is_held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % _HELD_OUT_EVERY == 0


@lru_cache(maxsize=1)
def load_corpus() -> Corpus:
    """Read the running Python's own prose.

    Returns:
        Corpus: about nine documents in ten in `train`, the rest in `held_out`.
    """
    splits: dict[bool, list[str]] = {False: [], True: []}
    digest = hashlib.sha256()
    for name, text in (*_topics(), *_modules()):
        splits[_is_held_out(name)].append(text)
        digest.update(name.encode() + b"\0" + text.encode() + b"\0")
    return Corpus(tuple(splits[False]), tuple(splits[True]), digest.hexdigest())


@lru_cache(maxsize=1)
def load_held_out() -> tuple[str, ...]:
    """The held-out documents alone: the same as `load_corpus().held_out`, in a tenth of the time."""
    topics = (text for name, text in _topics() if _is_held_out(name))
    return (*topics, *(text for _, text in _modules(held_out_only=True)))
