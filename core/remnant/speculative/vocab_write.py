"""Write a trimmed checkpoint: beside the place first, then moved there, so that no half of one is ever seen."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from remnant.errors import ConfigError
from remnant.speculative.vocab_checkpoint import Checkpoint
from remnant.speculative.vocab_map import VocabMap
from remnant.speculative.vocab_names import trimmed_name

__all__ = ["ABOUT", "check_out", "final_map", "replacing", "write_trimmed"]

ABOUT = "remnant_trim"
"""Key of what is known of a trimming, in the config and in the metadata of the weights."""

_INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
_TABLES = ("d2t", "t2d")


def check_out(out: Path, source: Path, force: bool) -> None:
    """Refuse a place that must not be written to.

    Raises:
        ConfigError: it is the model itself; something is there and `force` is not set; or what is there is no
            checkpoint, which is never replaced; or nothing can be written there.
    """
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise ConfigError(f"out {str(out)!r} holds the model itself", accepted="another folder")
    near = next(place for place in (out, *out.absolute().parents) if place.exists())
    if near != out and not near.is_dir():
        raise ConfigError(f"out {str(out)!r}, but {str(near)!r} is a file", accepted="a folder")
    if not os.access(out.absolute().parent if near == out else near, os.W_OK):
        raise ConfigError(f"out {str(out)!r} may not be written", accepted="a folder in one that may")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise ConfigError(f"out {str(out)!r} is there already", do="give another folder, or --force to replace it")
    if not (out / "config.json").is_file():
        raise ConfigError(f"out {str(out)!r} is no checkpoint", do="give another folder: this one is not replaced")


@contextmanager
def replacing(out: Path, source: Path, force: bool = False) -> Generator[Path, None, None]:
    """A folder to write into; it takes the place of `out` at the end, and vanishes on an error.

    Raises:
        ConfigError: see `check_out`.
    """
    check_out(out, source, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    except OSError as error:
        raise ConfigError(
            f"out {str(out)!r} cannot be made: {error}", accepted="a folder in one that may be"
        ) from error
    shutil.copymode(source, folder)  # as private as the model is, and no more
    try:
        yield folder
        if out.exists():
            old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
            out.replace(old / "old")
            folder.replace(out)
            shutil.rmtree(old)
        else:
            folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def final_map(checkpoint: Checkpoint, kept: VocabMap) -> VocabMap:
    """Target ids of the rows that stay, where the checkpoint may have been trimmed before.

    Args:
        checkpoint: the drafter as it is.
        kept: over its rows.
    """
    return kept if checkpoint.kept is None else checkpoint.kept.compose(kept)


def write_trimmed(checkpoint: Checkpoint, kept: VocabMap, folder: Path, about: Mapping[str, Any]) -> None:
    """Write the drafter with fewer rows; everything else is copied as it is.

    Args:
        checkpoint: the drafter.
        kept: over its rows: which stay. With all of V, tables are dropped: hosts take a missing table as the identity,
            and need no scatter.
        folder: to write into.
        about: what is known of the trimming.
    """
    _copy_files(checkpoint.folder, folder)
    config = _config(checkpoint, kept) | {ABOUT: dict(about)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    sizes: dict[str, tuple[str, int]] = {}
    for name in sorted({stored.file for stored in checkpoint.tensors.values()}):
        tensors = load_file(checkpoint.folder / name)
        if name == checkpoint.tensors[checkpoint.head].file:
            tensors |= _head(checkpoint, kept, tensors)
        if checkpoint.bias and name == checkpoint.tensors[checkpoint.bias].file:
            tensors[checkpoint.bias] = tensors[checkpoint.bias][kept.keep].contiguous()
        tensors = {key: x for key, x in tensors.items() if key not in _TABLES}
        if name == checkpoint.tensors[checkpoint.head].file:
            tensors |= _tables(checkpoint, kept)
        save_file(tensors, folder / name, metadata=_metadata(checkpoint.folder / name) | {ABOUT: json.dumps(about)})
        shutil.copymode(checkpoint.folder / name, folder / name)
        sizes |= {key: (name, x.numel() * x.element_size()) for key, x in tensors.items()}
    if (checkpoint.folder / _INDEX).is_file():
        total = sum(size for _, size in sizes.values())
        index = {"metadata": {"total_size": total}, "weight_map": {key: sizes[key][0] for key in sorted(sizes)}}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _config(checkpoint: Checkpoint, kept: VocabMap) -> dict[str, Any]:
    config, whole = dict(checkpoint.config), final_map(checkpoint, kept).whole
    if checkpoint.kind == "eagle3":
        return config | {"draft_vocab_size": kept.k}
    if whole:
        return config
    smaller = {"architectures": [trimmed_name(checkpoint.architecture)], "draft_vocab_size": kept.k}
    return config | smaller | {"tie_word_embeddings": False}


def _head(checkpoint: Checkpoint, kept: VocabMap, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows that stay; of a tied head a copy, unless all stay."""
    if kept.k == checkpoint.rows:
        return {}
    return {"lm_head.weight": tensors[checkpoint.head][kept.keep].contiguous()}


def _tables(checkpoint: Checkpoint, kept: VocabMap) -> dict[str, Tensor]:
    final = final_map(checkpoint, kept)
    return {} if final.whole else final.to_tensors()


def _metadata(path: Path) -> dict[str, str]:
    opened: Any = safe_open(str(path), "pt")
    with opened as file:
        return {"format": "pt", **(file.metadata() or {})}


def _copy_files(source: Path, folder: Path) -> None:
    """Tokenizer, generation settings, licence and whatever else is no weight."""
    for path in sorted(source.iterdir()):
        skipped = path.suffix in _WEIGHTS or path.name in (_INDEX, "config.json") or path.name.startswith(".")
        if path.is_file() and not skipped and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
