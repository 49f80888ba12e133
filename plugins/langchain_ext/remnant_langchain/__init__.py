"""Remnant for LangChain and LangGraph: an agent that learns from its runs, in one line.

Example:
    create_agent(model, tools, middleware=[MemoryMiddleware("agent.db", strategy="reasoningbank")])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant_langchain.callback import memory_callback
    from remnant_langchain.middleware import MemoryMiddleware
    from remnant_langchain.models import LangChainChatModel, LangChainEmbedder
    from remnant_langchain.reorder import ReorderDocuments
    from remnant_langchain.retriever import MemoryRetriever
    from remnant_langchain.routed import RoutedRetriever
    from remnant_langchain.routing import RouterMiddleware
    from remnant_langchain.scaling import amatts, matts
    from remnant_langchain.store import MemoryStore
    from remnant_langchain.tools import memory_tools

_MODULES = {
    "callback": "memory_callback",
    "middleware": "MemoryMiddleware",
    "models": "LangChainChatModel LangChainEmbedder",
    "reorder": "ReorderDocuments",
    "retriever": "MemoryRetriever",
    "routed": "RoutedRetriever",
    "routing": "RouterMiddleware",
    "scaling": "amatts matts",
    "store": "MemoryStore",
    "tools": "memory_tools",
}

__all__ = [
    "LangChainChatModel",
    "LangChainEmbedder",
    "MemoryMiddleware",
    "MemoryRetriever",
    "MemoryStore",
    "ReorderDocuments",
    "RoutedRetriever",
    "RouterMiddleware",
    "amatts",
    "matts",
    "memory_callback",
    "memory_tools",
]

__getattr__, __dir__ = attach(
    __name__,
    {name: f"remnant_langchain.{module}" for module, names in _MODULES.items() for name in names.split()},
    extra="langchain",
)
