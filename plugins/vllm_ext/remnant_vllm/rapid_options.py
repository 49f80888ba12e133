"""What the user asked of RAPID in vLLM, checked once and before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from remnant.errors import ConfigError, unknown
from remnant.speculative.rag_context import RagContext
from remnant_vllm.asked import KEY

__all__ = ["RapidOptions"]


@dataclass(frozen=True)
class RapidOptions:
    """The part of `--additional-config` under `remnant`, `rapid`.

    Attributes:
        model: folder or name of the second model; it must have the target's vocabulary.
        tail: last tokens of every prompt, the question and what the chat template puts behind it.
        marker: a text instead; the tail begins where it occurs last.
        head: first tokens of every prompt that stay.
        chunk: tokens of one chunk.
        k: chunks.
        floor: least similarity.
        index: `words`, or with an embedder `hybrid` or a vector index.
        embedder: folder or name of a sentence-transformers model.
        requests: texts that have a cache in the second model at once; further requests are served without drafts. None
            is `max_num_seqs`, at most 16.
        context: tokens of one such text, answer included; None has room for the chunks and 1,024 tokens more.
        confidence: a draft ends before a token that the second model gives less probability, 0 to 1.
    """

    model: str
    tail: int = 64
    marker: str | None = None
    head: int = 0
    chunk: int = 512
    k: int = 16
    floor: float = 0.3
    index: str | None = None
    embedder: str | None = None
    requests: int | None = None
    context: int | None = None
    confidence: float = 0.1

    @staticmethod
    def parse(given: object) -> RapidOptions:
        """Check what was given.

        Raises:
            ConfigError: not a mapping, no model, an unknown option, or a value out of range.
        """
        where = f"additional_config[{KEY!r}]['rapid']"
        names = [field.name for field in fields(RapidOptions)]
        if not isinstance(given, Mapping):
            what = "nothing" if given is None else type(given).__name__
            raise ConfigError(
                f"{where} is {what}",
                accepted="a mapping with the model of the drafter",
                do='for example {"remnant": {"rapid": {"model": "FOLDER"}}}',
            )
        keys = dict(cast("Mapping[str, Any]", given))
        for key in keys:
            if key not in names:
                raise unknown(f"option in {where}:", key, names)
        if not keys.get("model") or not isinstance(keys["model"], str):
            raise ConfigError(f"{where}: model={keys.get('model')!r}", accepted="a folder or name")
        options = RapidOptions(**keys)
        for name in ("tail", "head", "chunk", "k", "requests", "context"):
            value = getattr(options, name)
            least = 0 if name == "head" else 1
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"{where}: {name}={value!r}", accepted=f"an integer of at least {least}")
        for name in ("floor", "confidence"):
            value = getattr(options, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ConfigError(f"{where}: {name}={value!r}", accepted="0 to 1")
        if options.embedder is None and options.index not in (None, "words"):
            raise ConfigError(f"{where}: index={options.index!r} without an embedder", accepted="words")
        return options

    def retrieval(self, tokenizer: Any) -> RagContext:
        """How prompts are shortened.

        Raises:
            ConfigError: a marker, but no tokenizer.
            EmbedderError: the embedder cannot be had.
        """
        embedder = None
        if self.embedder is not None:
            from remnant.memory.embedders import SentenceTransformerEmbedder

            embedder = SentenceTransformerEmbedder(self.embedder, offline=Path(self.embedder).is_dir() or None)
        return RagContext(
            tokenizer, self.tail, self.marker, self.head, self.chunk, self.k, self.floor, self.index, embedder
        )

    def room(self, positions: int, longest: int) -> int:
        """Tokens of one text in the second model, given how many it can read and how many a request can have."""
        wanted = self.context or self.head + self.tail + self.k * (self.chunk + 8) + 1024
        return min(wanted, positions, longest)
