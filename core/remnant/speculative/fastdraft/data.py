"""What a drafter reads: rows of the corpus for pretraining, prompts for the target to answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from remnant.errors import ConfigError

__all__ = ["IGNORE", "Data", "FileRows", "Prompt", "Rows", "check_files", "read_data"]

Ids = NDArray[np.int64]
IGNORE = -100
_HELD_OUT = 10  # one prompt in ten is kept for the measurement
_SHORT, _LONG = 16, 64  # tokens of a prompt cut from the corpus


@dataclass(frozen=True)
class Prompt:
    """What the target shall continue.

    Args:
        ids: token ids.
        domain: what is measured apart from the others.
    """

    ids: tuple[int, ...]
    domain: str = "text"


class Rows(Protocol):
    """A corpus as rows of tokens, from a generator alone, so that a resumed run sees the same ones."""

    def rows(self, rng: np.random.Generator, n: int, length: int) -> tuple[Ids, Ids]:
        """Ids `[n, length]` and labels `[n, length]`: the next token, or `IGNORE` where none shall be learned."""
        ...


@dataclass(frozen=True)
class FileRows:
    """Slices of one stream of tokens.

    Args:
        stream: `[N]` int64, documents closed by `eos`.
        bos: begins every row, where the tokenizer has one.
    """

    stream: Ids
    bos: int | None

    def rows(self, rng: np.random.Generator, n: int, length: int) -> tuple[Ids, Ids]:
        """See `Rows`."""
        lead = 0 if self.bos is None else 1
        starts = rng.integers(0, len(self.stream), size=n)
        taken = np.take(self.stream, starts[:, None] + np.arange(length + 1 - lead), mode="wrap")
        if self.bos is not None:
            taken = np.concatenate([np.full((n, 1), self.bos), taken], axis=1)
        return np.array(taken[:, :-1], dtype=np.int64), np.array(taken[:, 1:], dtype=np.int64)


@dataclass(frozen=True)
class Data:
    """All that a run reads.

    Args:
        corpus: for pretraining.
        more: for continued pretraining, after it.
        prompts: for the target to answer, each once.
        held_out: prompts for the measurement only.
        sha256: fingerprint of all of it.
    """

    corpus: Rows
    more: Rows | None
    prompts: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    sha256: str


def check_files(files: Sequence[Path], what: str) -> None:
    """Refuse files that are absent or empty, before anything is loaded.

    Raises:
        ConfigError: a file is no file, or nothing stands in any of them.
    """
    for file in files:
        if not file.is_file():
            raise ConfigError(
                f"{what} {str(file)!r} does not exist", accepted="text files, or .jsonl with a field text"
            )
    if files and not any(file.stat().st_size for file in files):
        raise ConfigError(f"an empty {what}", do="give files with text in them")


def read_data(
    tokenizer: Any,
    corpus: Sequence[Path],
    more: Sequence[Path] = (),
    prompts: Path | None = None,
    wanted: int = 1000,
    held_out: int = 32,
    seed: int = 0,
) -> Data:
    """Read and tokenize a user's files.

    Args:
        tokenizer: of transformers.
        corpus: text files, a document each, or `.jsonl` with a field `text`.
        more: the same, for continued pretraining.
        prompts: one per line, or `.jsonl` with `prompt` or `messages` (a chat) and, if wanted, `domain`; None cuts
            prompts from the corpus.
        wanted: prompts to cut.
        held_out: of those, as many more for the measurement.
        seed: of the cuts.

    Raises:
        ConfigError: a file is absent, empty or not of these forms, or there are fewer than two prompts.
    """
    digest = hashlib.sha256()
    main = _stream(tokenizer, corpus, "corpus", digest)
    further = _stream(tokenizer, more, "corpus", digest) if more else None
    bos = _bos(tokenizer)
    if prompts is None:
        made = _cut(main, bos, wanted + held_out, seed)
        kept, train = made[:held_out], made[held_out:]
    else:
        made = _unique(_read_prompts(tokenizer, prompts, digest))
        kept = tuple(made[::_HELD_OUT])
        train = tuple(p for i, p in enumerate(made) if i % _HELD_OUT)
    if not kept or not train:
        raise ConfigError(f"{len(made)} different prompts", accepted="at least 2: some are kept for the measurement")
    rows = None if further is None else FileRows(further, bos)
    return Data(FileRows(main, bos), rows, tuple(train), tuple(kept), digest.hexdigest())


def _bos(tokenizer: Any) -> int | None:
    """The token that this tokenizer puts before every text, if it does."""
    ids = cast("list[int]", tokenizer("a")["input_ids"])
    return ids[0] if ids and ids[0] == tokenizer.bos_token_id else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{str(file)!r} is not UTF-8: {error}", accepted="text files, or .jsonl") from None


def _documents(file: Path) -> list[str]:
    text = _read(file)
    if file.suffix != ".jsonl":
        return [text]
    return [str(row["text"]) for row in _jsonl(file, text) if "text" in row]


def _jsonl(file: Path, text: str) -> list[dict[str, Any]]:
    try:  # at line feeds alone: strings of JSON may hold the other ends of lines as they are
        rows: list[Any] = [json.loads(line) for line in text.split("\n") if line.strip()]
        json.dumps(rows, ensure_ascii=False).encode()  # half a surrogate pair is no text that a tokenizer takes
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(file)!r}: {error}", accepted="one JSON object per line") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{str(file)!r} holds other things than objects", accepted="one JSON object per line")
    return rows


def _stream(tokenizer: Any, files: Sequence[Path], what: str, digest: Any) -> Ids:
    check_files(files, what)
    out: list[int] = []
    for file in files:
        for text in _documents(file):
            digest.update(text.encode() + b"\0")
            out += tokenizer(text, add_special_tokens=False)["input_ids"]
            if text and tokenizer.eos_token_id is not None:
                out.append(tokenizer.eos_token_id)
    if len(out) < 2:
        raise ConfigError(f"an empty {what}", do=f"give files with text in them, not {[str(f) for f in files]}")
    return np.array(out, dtype=np.int64)


def _cut(stream: Ids, bos: int | None, n: int, seed: int) -> tuple[Prompt, ...]:
    rng = np.random.default_rng([seed, 1])
    found: dict[tuple[int, ...], None] = {}
    for _ in range(n):
        length = int(rng.integers(_SHORT, _LONG + 1))
        start = int(rng.integers(0, len(stream)))
        body = np.take(stream, np.arange(start, start + length), mode="wrap").tolist()
        found[(*([] if bos is None else [bos]), *body)] = None
    return tuple(Prompt(ids) for ids in found)


def _read_prompts(tokenizer: Any, file: Path, digest: Any) -> list[Prompt]:
    check_files([file], "file of prompts")
    text = _read(file)
    digest.update(text.encode())
    if file.suffix != ".jsonl":
        return [Prompt(tuple(tokenizer(line)["input_ids"])) for line in text.splitlines() if line.strip()]
    return [_prompt(tokenizer, row, file) for row in _jsonl(file, text)]


def _prompt(tokenizer: Any, row: dict[str, Any], file: Path) -> Prompt:
    domain = str(row.get("domain", "text"))
    if "messages" in row:
        ids = _chat(tokenizer, row["messages"], file)
    elif "prompt" in row:
        ids = tokenizer(str(row["prompt"]))["input_ids"]
    else:
        raise ConfigError(f"{str(file)!r} has a line with {sorted(row)}", accepted="prompt or messages, and domain")
    return Prompt(tuple(ids), domain)


def _chat(tokenizer: Any, messages: Any, file: Path) -> list[int]:
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    except Exception as error:  # a template is a program of the checkpoint's own and raises what it likes
        raise ConfigError(
            f"{str(file)!r}: messages that the tokenizer's template does not take: {str(error).splitlines()[0]}",
            accepted='[{"role": "user", "content": "..."}], and a tokenizer with a chat template',
            do="or give prompts as text: prompt",
        ) from error


def _unique(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Without duplicates, which would weigh more, and would be both learned and measured."""
    return list({prompt.ids: prompt for prompt in prompts if prompt.ids}.values())
