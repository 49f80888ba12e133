"""Remnant for LlamaIndex: an agent that learns from its runs, in one line.

    agent.run("book a table", memory=RemnantMemory.open("agent.db", strategy="tim", scope="tenant-a"))

The same file serves LangChain and `remnant.memory`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant_llamaindex.block import RemnantMemoryBlock
    from remnant_llamaindex.memory import RemnantMemory
    from remnant_llamaindex.models import LlamaChatModel, LlamaEmbedder
    from remnant_llamaindex.query import RoutedQueryEngine
    from remnant_llamaindex.reorder import ReorderNodes
    from remnant_llamaindex.retriever import RemnantRetriever
    from remnant_llamaindex.scaling import matts
    from remnant_llamaindex.selector import RoutedSelector
    from remnant_llamaindex.tracking import Tracked

_MODULES = {
    "block": "RemnantMemoryBlock",
    "memory": "RemnantMemory",
    "models": "LlamaChatModel LlamaEmbedder",
    "query": "RoutedQueryEngine",
    "reorder": "ReorderNodes",
    "retriever": "RemnantRetriever",
    "scaling": "matts",
    "selector": "RoutedSelector",
    "tracking": "Tracked",
}

__all__ = [
    "LlamaChatModel",
    "LlamaEmbedder",
    "RemnantMemory",
    "RemnantMemoryBlock",
    "RemnantRetriever",
    "ReorderNodes",
    "RoutedQueryEngine",
    "RoutedSelector",
    "Tracked",
    "matts",
]

__getattr__, __dir__ = attach(
    __name__,
    {name: f"remnant_llamaindex.{module}" for module, names in _MODULES.items() for name in names.split()},
    extra="llamaindex",
)
