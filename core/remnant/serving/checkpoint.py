"""Where a checkpoint lies and how many bytes its weights are; nothing is ever downloaded."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from remnant.errors import ConfigError

__all__ = ["estimated_bytes", "find_config", "read_json", "stored_bytes"]

_ELEMENT = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def find_config(given: str) -> Path:
    """The `config.json` that a name stands for.

    Args:
        given: a folder, a file, or the id of a model that is in the Hugging Face cache.

    Raises:
        ConfigError: it is none of these.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        path /= "config.json"
    if path.is_file():
        return path
    if cached := _cached(given):
        return cached
    raise ConfigError(
        f"model {given!r}: no such folder or file, and not in the Hugging Face cache",
        accepted="a checkpoint's folder, its config.json, or the id of a model downloaded before",
        do=f"download it first, e.g. hf download {given} config.json" if _is_id(given) else "check the path",
    )


def _is_id(given: str) -> bool:
    return given.count("/") <= 1 and not given.startswith((".", "/", "~"))


def _cached(given: str) -> Path | None:
    if not _is_id(given):
        return None
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    folder = hub / f"models--{given.replace('/', '--')}"
    head = folder / "refs" / "main"
    names = [head.read_text().strip()] if head.is_file() else []
    found = (folder / "snapshots" / name / "config.json" for name in names)
    return next((path for path in found if path.is_file()), None)


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file.

    Raises:
        ConfigError: it is something else.
    """
    try:
        data: object = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{str(path)!r} is not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{str(path)!r} holds no JSON object", accepted="the config.json of a checkpoint")
    return cast("Mapping[str, Any]", data)


def stored_bytes(folder: Path, element: int) -> int | None:
    """Bytes that the weights of a folder take once they are loaded, from the headers of its files.

    Args:
        folder: of the checkpoint.
        element: bytes per element of the type that the model runs in; tensors that are not floating point, as in
            quantised checkpoints, keep their own.

    Returns:
        None when there are no `safetensors` files.

    Raises:
        ConfigError: the index names files that are not there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
    else:
        files = list(folder.glob("model*.safetensors")) or list(folder.glob("*.safetensors"))
        names = sorted(path.name for path in files)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and index.is_file():
        total = read_json(index).get("metadata", {}).get("total_size")
        if total:
            return int(total)
        raise ConfigError(f"{folder.name}: {len(missing)} of {len(names)} weight files are missing", do=f"{missing[0]}")
    return sum(_file_bytes(folder / name, element) for name in names) if names else None


def _file_bytes(path: Path, element: int) -> int:
    with path.open("rb") as file:
        length = file.read(8)
        if len(length) < 8:
            raise ConfigError(f"{path.name} is not a safetensors file")
        header = cast("dict[str, Any]", json.loads(file.read(struct.unpack("<Q", length)[0])))
    header.pop("__metadata__", None)
    total = 0
    for tensor in header.values():
        first, last = tensor["data_offsets"]
        plain = tensor["dtype"] in _ELEMENT
        total += math.prod(tensor["shape"]) * element if plain else last - first
    return total


def estimated_bytes(config: Mapping[str, Any], element: int) -> int:
    """Bytes of the weights of a Llama-like model with these sizes: embeddings, projections, gated MLP or experts.

    Args:
        config: the text part of a configuration.
        element: bytes per element.

    Raises:
        ConfigError: the sizes are not all there.
    """
    try:
        width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads, words = int(config["num_attention_heads"]), int(config["vocab_size"])
        inner = int(config.get("intermediate_size") or 4 * width)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the weights cannot be estimated: the configuration has no {error}", do="give --weights-bytes"
        ) from None
    dim = int(config.get("head_dim") or width // heads)
    kv = int(config.get("num_key_value_heads") or heads)
    attention = width * dim * (2 * heads + 2 * kv)
    experts = int(config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts") or 0)
    mlp = 3 * width * inner
    if experts:
        each = int(config.get("moe_intermediate_size") or inner)
        shared = int(config.get("n_shared_experts") or 0) * each
        mlp = 3 * width * (each * experts + shared) + width * experts
    embeddings = words * width * (1 if config.get("tie_word_embeddings") else 2)
    return element * (embeddings + layers * (attention + mlp + 2 * width) + width)
