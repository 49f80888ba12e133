"""A drafter's checkpoint as its files describe it: nothing but headers and the small tables is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor

from remnant.errors import ConfigError
from remnant.serving.checkpoint import estimated_bytes, find_config, read_json, stored_bytes
from remnant.speculative.vocab_choose import StepCost
from remnant.speculative.vocab_map import VocabMap

__all__ = ["Checkpoint", "Stored", "read_checkpoint", "target_bytes", "trimmed_map"]

Kind = Literal["eagle3", "causal"]

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_TABLES = ("d2t", "t2d")
_HEAD = "lm_head"
_NO_TABLE = ("Medusa", "MTP", "Eagle")  # drafters whose loaders know no smaller vocabulary


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Args:
        file: the file's name within the folder.
        dtype: as safetensors names it: `BF16`, `F32`, `I64`.
        shape: of the tensor.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of its data; a quantised element counts as one byte at most."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 1)


@dataclass(frozen=True)
class Checkpoint:
    """A drafter that can be trimmed.

    Args:
        folder: where it lies.
        config: its `config.json`.
        kind: an EAGLE-3 drafter, or an ordinary causal language model.
        tensors: name -> where it is stored.
        head: name of the tensor whose rows are the head's; the embedding where the two are tied.
        tied: whether they are.
        vocab_size: V, of the target.
        rows: of the head as it is: V, or fewer when it was trimmed before.
        kept: which tokens those are; None when all.
    """

    folder: Path
    config: Mapping[str, Any]
    kind: Kind
    tensors: Mapping[str, Stored]
    head: str
    tied: bool
    vocab_size: int
    rows: int
    kept: VocabMap | None

    @property
    def architecture(self) -> str:
        """Of its configuration."""
        return str(self.config["architectures"][0])

    @property
    def embedding(self) -> str | None:
        """Name of the input embedding; None where the drafter uses the target's."""
        return _embedding(self.tensors)

    @property
    def bias(self) -> str | None:
        """Name of the head's bias, if it has one."""
        return next((name for name in self.tensors if name == f"{_HEAD}.bias"), None)

    def cost(self, target: int = 0) -> StepCost:
        """What a draft step reads; see `StepCost`.

        Args:
            target: bytes of the target's weights at this precision; 0 when not known.
        """
        apart = {self.head, self.embedding, self.bias, *_TABLES, f"{_HEAD}.weight"}
        rest = sum(stored.bytes for name, stored in self.tensors.items() if name not in apart)
        row = self.tensors[self.head].bytes // self.rows
        row += self.tensors[self.bias].bytes // self.rows if self.bias else 0
        return StepCost(rest, row, target)

    @property
    def element(self) -> int:
        """Bytes per element of the head."""
        return _BYTES[self.tensors[self.head].dtype]


def read_checkpoint(given: str | Path) -> Checkpoint:
    """Look at a drafter and refuse what cannot be trimmed, before any weight is read.

    Args:
        given: a checkpoint's folder, or the id of a model that is in the Hugging Face cache.

    Raises:
        ConfigError: no checkpoint; weights that are not safetensors; a drafter without a table of ids; no head, or a
            quantised one; sizes that contradict each other; a smaller vocabulary whose map is missing or inconsistent.
    """
    path = find_config(str(given))
    config, folder = read_json(path), path.parent
    kind, tensors = _kind(config, folder), _stored(folder)
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise ConfigError(f"{folder.name}: vocab_size {vocab_size!r}", accepted="the config.json of a language model")
    head, tied = _head(config, tensors, vocab_size, folder)
    stored = tensors[head]
    if stored.dtype not in _BYTES or len(stored.shape) != 2:
        given_head = f"{folder.name}: a head of {stored.dtype} {list(stored.shape)}"
        raise ConfigError(given_head, accepted="floating point [rows, d]", do="trim first, then quantise")
    rows = stored.shape[0]
    told = config.get("draft_vocab_size") or vocab_size
    if rows != told or rows > vocab_size:
        said = f"draft_vocab_size {told}, vocab_size {vocab_size}"
        raise ConfigError(f"{folder.name}: a head of {rows} rows, {said}", accepted="as many rows as the config says")
    bias = tensors.get(f"{_HEAD}.bias")
    if bias is not None and bias.shape != (rows,):
        raise ConfigError(f"{folder.name}: a bias of {list(bias.shape)}", accepted=f"[{rows}], one per row")
    kept = None if rows == vocab_size else _map(folder, tensors, rows, vocab_size)
    return Checkpoint(folder, config, kind, tensors, head, tied, vocab_size, rows, kept)


def trimmed_map(folder: Path) -> VocabMap:
    """The map of a trimmed checkpoint; what hosts ask for before they load its weights.

    Raises:
        ConfigError: it is not trimmed, or its map is missing or inconsistent.
    """
    checkpoint = read_checkpoint(folder)
    if checkpoint.kept is None:
        given = f"{folder.name} keeps all {checkpoint.vocab_size} tokens"
        raise ConfigError(given, accepted="a model that remnant trim-vocab wrote", do="load it as any other model")
    return checkpoint.kept


def target_bytes(given: str | Path, vocab_size: int, element: int) -> int:
    """Bytes of a target's weights, from headers or, without weights, from its configuration.

    Args:
        given: a checkpoint's folder or id.
        vocab_size: V of the drafter, which has to be the target's.
        element: bytes per element of the drafter, so that the ratio is one of parameters.

    Raises:
        ConfigError: no such target, or one with another vocabulary.
    """
    path = find_config(str(given))
    config = read_json(path)
    found = config.get("vocab_size", cast("dict[str, Any]", config.get("text_config") or {}).get("vocab_size"))
    if found != vocab_size:
        do = "give the target that the drafter was made for"
        raise ConfigError(f"a target of {found} tokens, a drafter of {vocab_size}", accepted="one vocabulary", do=do)
    return stored_bytes(path.parent, element) or estimated_bytes(config.get("text_config") or config, element)


def _kind(config: Mapping[str, Any], folder: Path) -> Kind:
    names: list[Any] = config.get("architectures") or []
    if not names:
        raise ConfigError(f"{folder.name}: a configuration without 'architectures'", accepted="a drafter's config.json")
    name = str(names[0])
    if name.startswith("Eagle3") or name.endswith("Eagle3"):
        return "eagle3"
    if any(mark in name for mark in _NO_TABLE) or not name.endswith(("ForCausalLM", "LMHeadModel")):
        accepted = "an EAGLE-3 drafter or a causal language model"
        raise ConfigError(f"{folder.name}: architecture {name} takes no smaller vocabulary", accepted=accepted)
    return "causal"


def _stored(folder: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
    else:
        names = sorted(path.name for path in folder.glob("model*.safetensors")) or sorted(
            path.name for path in folder.glob("*.safetensors")
        )
    if not names:
        others = any(next(folder.glob(kind), None) for kind in ("*.bin", "*.pt", "*.pth"))
        given = f"{folder.name}: weights in a format that can run code" if others else f"{folder.name}: no weights"
        raise ConfigError(given, accepted="*.safetensors", do="save the model again with safetensors" if others else "")
    found: dict[str, Stored] = {}
    for name in names:
        try:
            opened: Any = safe_open(str(folder / name), "pt")
            with opened as file:
                for key in file.keys():  # noqa: SIM118  (not a mapping)
                    part = file.get_slice(key)
                    found[key] = Stored(name, str(part.get_dtype()), tuple(part.get_shape()))
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{folder.name}: {name} cannot be read: {error}") from None
    return found


def _head(config: Mapping[str, Any], tensors: Mapping[str, Stored], vocab_size: int, folder: Path) -> tuple[str, bool]:
    """Name of the head's rows, and whether they are the embedding's."""
    plain, embedding = f"{_HEAD}.weight", _embedding(tensors)
    tied = config.get("tie_word_embeddings")
    if plain in tensors and not (tied and embedding):
        return plain, False
    packed = sorted(name for name in tensors if name.startswith(f"{_HEAD}.") and name != f"{_HEAD}.bias")
    if packed and plain not in tensors:
        do = "trim first, then quantise"
        raise ConfigError(f"{folder.name}: a quantised head, {packed[0]}", accepted=plain, do=do)
    if embedding is None or tied is False:
        do = "copy the target's head into the checkpoint first" if embedding is None else ""
        raise ConfigError(f"{folder.name}: no head", accepted=f"{plain}, or a tied embedding", do=do)
    if tensors[embedding].shape[0] != vocab_size:
        given = f"{folder.name}: an embedding of {tensors[embedding].shape[0]} rows, vocab_size {vocab_size}"
        raise ConfigError(given, accepted="one size")
    return embedding, True


def _embedding(tensors: Mapping[str, Stored]) -> str | None:
    return next((name for name in tensors if name.endswith(_EMBEDDINGS)), None)


def _map(folder: Path, tensors: Mapping[str, Stored], rows: int, vocab_size: int) -> VocabMap:
    from safetensors import safe_open

    tables: dict[str, Tensor] = {}
    for name in _TABLES:
        if name in tensors:
            opened: Any = safe_open(str(folder / tensors[name].file), "pt")
            with opened as file:
                tables[name] = file.get_tensor(name)
    try:
        found = VocabMap.from_tensors(tables, vocab_size)
    except ConfigError as error:
        raise ConfigError(f"{folder.name}: {error.given}", accepted=error.accepted, do=error.do) from None
    if found.k != rows:
        raise ConfigError(f"{folder.name}: a map of {found.k} tokens for a head of {rows} rows", accepted="one size")
    return found
