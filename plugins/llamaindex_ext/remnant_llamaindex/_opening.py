"""Open the core's memory with LlamaIndex's models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM

from remnant.memory import ChatModel, Embedder, Memory, Strategy
from remnant.memory.record import DEFAULT_SCOPE
from remnant_llamaindex.models import AgentModel, LlamaChatModel, LlamaEmbedder

Llm = BaseLLM | ChatModel | Literal[False] | None
"""A model of LlamaIndex or of the core; None is the agent's own (`AgentModel`); False is none at all."""


def open_memory(
    path_or_url: str | Path,
    strategy: str | Strategy,
    scope: str | Mapping[str, str] | None,
    llm: Llm,
    embedder: BaseEmbedding | Embedder | None,
    **settings: Any,
) -> Memory:
    """`Memory.open`, where a model of LlamaIndex will do, and a file of one's own needs no scope."""
    chat: Any = AgentModel() if llm is None else None if llm is False else llm
    chat = LlamaChatModel(chat) if isinstance(chat, BaseLLM) else chat
    vectors = LlamaEmbedder(embedder) if isinstance(embedder, BaseEmbedding) else embedder
    whose = DEFAULT_SCOPE if scope is None else scope
    return Memory.open(path_or_url, strategy, scope=whose, llm=chat, embedder=vectors, **settings)
