"""Which tokens a text holds: token ids from files, and how often each occurs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from remnant.errors import ConfigError
from remnant.progress import Progress, silent

__all__ = ["Encode", "Tokens", "count_tokens", "read_prompts", "read_tokens", "windows"]

Encode = Callable[[str], list[int]]
"""Text to token ids, without special tokens around it."""

_CHARS = 1 << 16  # of text, tokenised at once
_KINDS = ".txt, .md, .jsonl, .npy, .safetensors"


@dataclass(frozen=True)
class Tokens:
    """A stretch of token ids.

    Args:
        ids: `[T]` int64.
        counted: `[T]` bool, which of them the target would have to write (a loss mask); None is all of them.
    """

    ids: Tensor
    counted: Tensor | None = None

    def chosen(self) -> Tensor:
        """The ids that count."""
        return self.ids if self.counted is None else self.ids[self.counted]


def read_tokens(path: Path, encode: Encode | None, vocab_size: int, progress: Progress = silent) -> Iterator[Tokens]:
    """Read token ids from a file.

    Args:
        path: `.txt` or `.md`: text; `.jsonl`: lines with `text`, or with `ids` (or `input_ids`, or a bare list) and,
            if some do not count, `loss_mask`; `.npy`: integers; `.safetensors`: `ids` (or `input_ids`) and perhaps
            `loss_mask`.
        encode: for text; None where there is no tokenizer.
        vocab_size: V; every id must lie below it.
        progress: called with bytes read, bytes in all.

    Raises:
        ConfigError: no such file, of another kind, broken, text without a tokenizer, or an id outside `[0, V)`, which
            means that the ids come from another tokenizer.
    """
    if not path.is_file():
        raise ConfigError(f"no file {str(path)!r}", accepted=_KINDS)
    readers = {".txt": _text, ".md": _text, ".jsonl": _lines, ".npy": _npy, ".safetensors": _safetensors}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path.name!r} is of no kind that holds tokens", accepted=_KINDS)
    total = max(path.stat().st_size, 1)
    for tokens, done in reader(path, encode):
        if len(tokens.ids) and not 0 <= int(tokens.ids.min()) <= int(tokens.ids.max()) < vocab_size:
            low, high = int(tokens.ids.min()), int(tokens.ids.max())
            given = f"{path.name} holds token ids from {low} to {high}"
            do = "use the tokenizer of the model"
            raise ConfigError(given, accepted=f"0 to {vocab_size - 1}, the model's vocabulary", do=do)
        progress(min(done, total), total, f"reading {path.name}")
        yield tokens


def count_tokens(texts: Iterable[Tokens], vocab_size: int) -> Tensor:
    """How often each token occurs where it counts.

    Returns:
        `[V]` int64.
    """
    counts = torch.zeros(vocab_size, dtype=torch.int64)
    for tokens in texts:
        counts += torch.bincount(tokens.chosen(), minlength=vocab_size)
    return counts


def windows(texts: Iterable[Tokens], length: int) -> Iterator[Tokens]:
    """Cut texts into windows of at most `length` tokens."""
    for tokens in texts:
        for start in range(0, len(tokens.ids), length):
            part = slice(start, start + length)
            yield Tokens(tokens.ids[part], None if tokens.counted is None else tokens.counted[part])


def read_prompts(path: Path, encode: Encode | None, vocab_size: int) -> list[Tokens]:
    """Read prompts: of text a line each, of other files a row each.

    Raises:
        ConfigError: see `read_tokens`; or there is none.
    """
    if path.suffix.lower() in (".txt", ".md") and path.is_file():
        try:
            lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path.name} is not UTF-8: {error}") from None
        prompts = [Tokens(_tensor(_need(encode, path)(line))) for line in lines]
    else:
        prompts = list(read_tokens(path, encode, vocab_size))
    prompts = [prompt for prompt in prompts if len(prompt.ids)]
    if not prompts:
        raise ConfigError(f"{path.name} holds no prompt", accepted="a prompt per line")
    return prompts


def _need(encode: Encode | None, path: Path) -> Encode:
    if encode is None:
        do = "give --tokenizer FOLDER, or a file of ids"
        raise ConfigError(f"{path.name} holds text, but there is no tokenizer beside the model", do=do)
    return encode


def _text(path: Path, encode: Encode | None) -> Iterator[tuple[Tokens, int]]:
    encode, held, chars, done = _need(encode, path), list[str](), 0, 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                held.append(line)
                chars += len(line)
                if chars >= _CHARS:
                    text = "".join(held)
                    done += len(text.encode())
                    yield Tokens(_tensor(encode(text))), done
                    held, chars = [], 0
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} is not UTF-8: {error}") from None
    if held:
        yield Tokens(_tensor(encode("".join(held)))), path.stat().st_size


def _lines(path: Path, encode: Encode | None) -> Iterator[tuple[Tokens, int]]:
    done = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            done += len(raw)
            if raw.strip():
                yield _line(raw, f"{path.name} line {number}", encode, path), done


def _line(raw: bytes, where: str, encode: Encode | None, path: Path) -> Tokens:
    try:
        row: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from None
    fields = cast("dict[str, Any]", row) if isinstance(row, dict) else {"ids": row}
    if isinstance(fields.get("text"), str):
        return Tokens(_tensor(_need(encode, path)(_unicode(str(fields["text"]), where))))
    ids: Any = next((fields[key] for key in ("ids", "input_ids", "token_ids") if key in fields), None)
    mask: Any = fields.get("loss_mask")
    if not _integers(ids) or any(isinstance(i, bool) for i in ids) or not (mask is None or _integers(mask)):
        accepted = '{"text": "..."} or {"ids": [...], "loss_mask": [...]}'
        raise ConfigError(f"{where} holds neither text nor ids", accepted=accepted)
    return _masked(_tensor(ids), None if mask is None else _tensor(mask), where)


def _npy(path: Path, encode: Encode | None) -> Iterator[tuple[Tokens, int]]:
    import numpy as np

    try:
        array: Any = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ConfigError(f"{path.name} is not an array of numbers: {error}") from None
    if getattr(array, "dtype", None) is None or array.dtype.kind not in "iu":
        raise ConfigError(f"{path.name} holds {getattr(array, 'dtype', 'several arrays')}", accepted="integers")
    for row in array.reshape(-1, array.shape[-1]) if array.ndim > 1 else [array.reshape(-1)]:
        yield Tokens(torch.as_tensor(row.astype(np.int64))), path.stat().st_size


def _safetensors(path: Path, encode: Encode | None) -> Iterator[tuple[Tokens, int]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path.name} is not a safetensors file: {error}") from None
    ids = tensors.get("ids", tensors.get("input_ids"))
    if ids is None or ids.is_floating_point() or ids.dim() < 1:
        raise ConfigError(f"{path.name} holds {sorted(tensors)}", accepted="ids or input_ids, and loss_mask if any")
    mask, size = tensors.get("loss_mask"), path.stat().st_size
    if mask is not None and mask.shape != ids.shape:
        raise ConfigError(
            f"{path.name}: a loss_mask of {tuple(mask.shape)}", accepted=f"{tuple(ids.shape)}, as the ids"
        )
    for i, row in enumerate(ids.reshape(-1, ids.shape[-1])):
        yield Tokens(row.long(), None if mask is None else mask.reshape(-1, ids.shape[-1])[i] != 0), size


def _unicode(text: str, where: str) -> str:
    """The text, where it is one: JSON can spell half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} is no text: {error}", accepted="Unicode without single surrogates") from None
    return text


def _masked(ids: Tensor, mask: Tensor | None, where: str) -> Tokens:
    if mask is not None and mask.shape != ids.shape:
        raise ConfigError(f"{where}: {len(mask)} marks for {len(ids)} ids", accepted="one mark per id")
    return Tokens(ids, None if mask is None else mask != 0)


def _integers(x: object) -> bool:
    """Whether it is a list of integers that a tensor holds; of a mask, truth values are."""
    if not isinstance(x, list):
        return False
    return all(isinstance(i, int) and -(2**63) <= i < 2**63 for i in cast("list[object]", x))


def _tensor(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int64)
