"""Agent memory: one record, one journal, many strategies; no torch, no server, no key.

Example:
    memory = Memory.open("agent.db", scope="tenant-a")
    memory.add("Ada takes her tea without milk.")
    memory.recall("How does Ada take her tea?")[0].text -> "Ada takes her tea without milk."
"""

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant.memory.change import Difference
    from remnant.memory.context import Context
    from remnant.memory.cube import Cube, Imported, read_cube
    from remnant.memory.embedders import SentenceTransformerEmbedder
    from remnant.memory.episode import Episode, Job
    from remnant.memory.errors import (
        ConflictError,
        EmbedderError,
        JobLost,
        ModelError,
        RolloutsFailed,
        ScriptError,
        StoreError,
        StructuredError,
    )
    from remnant.memory.events import Event, Events
    from remnant.memory.guard import admitted, reads_like_a_command, render_data
    from remnant.memory.llm import (
        Aliases,
        ChatModel,
        Completion,
        Embedder,
        Message,
        Metered,
        Usage,
        astructured,
        structured,
    )
    from remnant.memory.memory import Memory
    from remnant.memory.models import HashEmbedder, OpenAIChatModel, ScriptedChatModel
    from remnant.memory.ops import Add, Forget, Merge, Op, Update
    from remnant.memory.postgres import PostgresStore
    from remnant.memory.record import Hit, Provenance, Record, Utility
    from remnant.memory.rollouts import Attempt, Rollout, Scaled
    from remnant.memory.scaling import amatts, matts
    from remnant.memory.secrets import find_secrets, redact
    from remnant.memory.sqlite import SqliteStore
    from remnant.memory.store import Receipt, RecordStore, Version, Write
    from remnant.memory.strategy import DistilContext, IndexText, Query, Strategy, within
    from remnant.memory.verdict import Judge, Verdict, judge, manual, rules
    from remnant.memory.widen import Widen

_MODULES = {
    "change": "Difference",
    "context": "Context",
    "cube": "Cube Imported read_cube",
    "embedders": "SentenceTransformerEmbedder",
    "episode": "Episode Job",
    "errors": "ConflictError EmbedderError JobLost ModelError RolloutsFailed ScriptError StoreError StructuredError",
    "events": "Event Events",
    "guard": "admitted reads_like_a_command render_data",
    "llm": "Aliases ChatModel Completion Embedder Message Metered Usage astructured structured",
    "scaling": "amatts matts",
    "memory": "Memory",
    "models": "HashEmbedder OpenAIChatModel ScriptedChatModel",
    "ops": "Add Forget Merge Op Update",
    "postgres": "PostgresStore",
    "record": "Hit Provenance Record Utility",
    "rollouts": "Attempt Rollout Scaled",
    "secrets": "find_secrets redact",
    "sqlite": "SqliteStore",
    "store": "Receipt RecordStore Version Write",
    "strategy": "DistilContext IndexText Query Strategy within",
    "verdict": "Judge Verdict judge manual rules",
    "widen": "Widen",
}

__all__ = [
    "Add",
    "Aliases",
    "Attempt",
    "ChatModel",
    "Completion",
    "ConflictError",
    "Context",
    "Cube",
    "Difference",
    "DistilContext",
    "Embedder",
    "EmbedderError",
    "Episode",
    "Event",
    "Events",
    "Forget",
    "HashEmbedder",
    "Hit",
    "Imported",
    "IndexText",
    "Job",
    "JobLost",
    "Judge",
    "Memory",
    "Merge",
    "Message",
    "Metered",
    "ModelError",
    "Op",
    "OpenAIChatModel",
    "PostgresStore",
    "Provenance",
    "Query",
    "Receipt",
    "Record",
    "RecordStore",
    "Rollout",
    "RolloutsFailed",
    "Scaled",
    "ScriptError",
    "ScriptedChatModel",
    "SentenceTransformerEmbedder",
    "SqliteStore",
    "StoreError",
    "Strategy",
    "StructuredError",
    "Update",
    "Usage",
    "Utility",
    "Verdict",
    "Version",
    "Widen",
    "Write",
    "admitted",
    "amatts",
    "astructured",
    "find_secrets",
    "judge",
    "manual",
    "matts",
    "read_cube",
    "reads_like_a_command",
    "redact",
    "render_data",
    "rules",
    "structured",
    "within",
]

__getattr__, __dir__ = attach(
    __name__, {name: f"remnant.memory.{module}" for module, names in _MODULES.items() for name in names.split()}
)
