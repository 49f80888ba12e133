"""Vectors from a model on this machine, through sentence-transformers (extra `embedder`)."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from remnant.errors import ConfigError
from remnant.lazy import needs
from remnant.memory.errors import EmbedderError

Kind = Literal["query", "document"]

_WEIGHTS = (".safetensors", ".bin", ".onnx", ".pt", ".h5", ".msgpack")
_ENDS = 1 << 20
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


class SentenceTransformerEmbedder:
    """A sentence-transformers model as an `Embedder`; safe to share between threads, one batch at a time.

    Vectors are unit vectors, float32. A model that knows prompts or parts of its own for questions and for documents
    gets them. A text longer than the model reads is cut by it.

    Args:
        model: a folder with a model, or its name on the hub.
        model_id: the name under which its vectors are stored; those of different names are never compared. None takes
            the name, for a folder with a digest of what lies in it, so that another model of that name is another.
        batch: texts at once.
        device: such as `cpu` or `cuda`; None lets the package choose.
        offline: never look beyond this machine; None means so for a folder.
        options: for `SentenceTransformer`, such as `truncate_dim`, `revision` or `prompts`.

    Raises:
        ConfigError: there is no such folder, or what is there is no model.
        EmbedderError: the model of that name cannot be had.
        MissingExtra: sentence-transformers is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        model_id: str | None = None,
        batch: int = 32,
        device: str | None = None,
        offline: bool | None = None,
        **options: Any,
    ) -> None:
        """See the class."""
        if batch < 1:
            raise ConfigError(f"batch {batch}", accepted="1 or more")
        folder = _folder(model)
        self._model = _loaded(str(folder or model), device, folder is not None if offline is None else offline, options)
        self._batch, self._lock = batch, threading.Lock()
        self.dim: int = _dimension(self._model)
        self.model_id: str = model_id or (_named(folder, options) if folder else _with(str(model), options))

    def embed(self, texts: Sequence[str], *, kind: Kind) -> Sequence[Sequence[float]]:
        """See `Embedder`; one row of `dim` float32 per text.

        Raises:
            EmbedderError: the model failed, or gave numbers that are none.
        """
        if not texts:
            return []
        try:
            with self._lock:
                rows: Any = self._encode(list(texts), kind)
        except Exception as error:
            raise EmbedderError(f"{self.model_id} failed: {_said(error)}") from error
        if rows.shape != (len(texts), self.dim) or not math.isfinite(float(rows.sum())):
            raise EmbedderError(f"{self.model_id} gave vectors of shape {rows.shape} or with numbers that are none")
        return rows

    async def aembed(self, texts: Sequence[str], *, kind: Kind) -> Sequence[Sequence[float]]:
        """See `Embedder`; in a thread."""
        return await asyncio.to_thread(self.embed, texts, kind=kind)

    def _encode(self, texts: list[str], kind: Kind) -> Any:
        encode = getattr(self._model, f"encode_{kind}", None)
        more: dict[str, Any] = {}
        if encode is None:  # before version 5 prompts are named by whoever asks
            names = ("query",) if kind == "query" else _DOCUMENT_PROMPTS
            known: Mapping[str, str] = getattr(self._model, "prompts", None) or {}
            encode, more = self._model.encode, {"prompt_name": next((name for name in names if name in known), None)}
        return encode(
            texts,
            batch_size=self._batch,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
            **more,
        ).astype("<f4", copy=False)


def _folder(model: str | Path) -> Path | None:
    """The folder that is meant, or None for a name on the hub.

    Raises:
        ConfigError: it looks like a folder, and there is none.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if isinstance(model, Path) or path.is_absolute() or str(model).startswith((".", "~")):
        raise ConfigError(f"no folder {path}", accepted="a folder with a model, or a model's name")
    return None


def _loaded(model: str, device: str | None, offline: bool, options: Mapping[str, Any]) -> Any:
    with needs("embedder", wanted_by="SentenceTransformerEmbedder"):
        from sentence_transformers import SentenceTransformer
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file() | (Path(model) / "modules.json").is_file():
        raise ConfigError(f"no model in {model}", accepted="a folder that holds config.json or modules.json")
    try:
        return SentenceTransformer(model, device=device, local_files_only=offline, **options)
    except Exception as error:  # whatever the package, its files or the network raise
        kind = ConfigError if Path(model).is_dir() else EmbedderError
        do = "name a folder that holds the model, or allow the download with offline=False" if offline else ""
        raise kind(f"model {model!r} cannot be loaded: {_said(error)}", do=do) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _dimension(model: Any) -> int:
    """Its newer name first, which does not warn."""
    ask = getattr(model, "get_embedding_dimension", None) or model.get_sentence_embedding_dimension
    return int(ask())


def _named(folder: Path, options: Mapping[str, Any]) -> str:
    """The folder's name and a digest of what makes the vectors; of large files their size and both ends."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (path.suffix in _WEIGHTS or path.suffix in (".json", ".txt", ".model")):
            found.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                found.update(file.read(_ENDS))
                file.seek(max(0, path.stat().st_size - _ENDS))
                found.update(file.read(_ENDS))
    return _with(f"{folder.resolve().name}@{found.hexdigest()[:12]}", options)


def _with(name: str, options: Mapping[str, Any]) -> str:
    """Other options, other vectors."""
    return name + "".join(f";{key}={options[key]!r}" for key in sorted(options))
