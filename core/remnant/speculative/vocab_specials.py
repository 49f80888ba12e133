"""Tokens that a trimmed drafter keeps whatever the counts say: ends, beginnings, and what chat templates write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from remnant.serving.checkpoint import read_json

__all__ = ["special_ids"]

_ENDS = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
_NAMES = ("bos_token", "eos_token", "additional_special_tokens", "extra_special_tokens")


def special_ids(folder: Path, vocab_size: int) -> dict[int, str]:
    """Ids that a model must be able to propose, from the files beside its weights.

    A drafter that lacks the end of an answer can never propose it, which costs a pass of the target per answer. Taken
    are the beginnings and ends that `config.json` and `generation_config.json` name, those that the tokenizer names,
    its additional special tokens, and every added token that its chat template writes (roles, turns, tools). Reserved
    tokens that no template uses are not.

    Args:
        folder: of a checkpoint; files that are absent say nothing.
        vocab_size: V; ids beyond it belong to no row and are left out.

    Returns:
        id -> why it is kept, ascending.
    """
    found: dict[int, str] = {}
    for name in ("config.json", "generation_config.json"):
        config = _read(folder / name)
        for key in _ENDS:
            for i in _integers(config.get(key)):
                found.setdefault(i, f"{key} of {name}")
    for i, why in _of_tokenizer(folder):
        found.setdefault(i, why)
    return {i: found[i] for i in sorted(found) if 0 <= i < vocab_size}


def _of_tokenizer(folder: Path) -> Iterator[tuple[int, str]]:
    config = _read(folder / "tokenizer_config.json")
    ids = _added(folder, config)
    named = {text for key in _NAMES for text in _texts(config.get(key))}
    template = "\n".join(_texts(config.get("chat_template")))
    for name in ("chat_template.jinja", "chat_template.json"):
        if (folder / name).is_file():
            template += (folder / name).read_text(encoding="utf-8", errors="replace")
    for text, i in ids.items():
        if text in named:
            yield i, f"{text} of the tokenizer"
        elif text in template:
            yield i, f"{text} of the chat template"


def _added(folder: Path, config: Mapping[str, Any]) -> dict[str, int]:
    """Text -> id of every token that was added to the vocabulary by hand."""
    ids: dict[str, int] = {}
    listed: list[dict[str, Any]] = _read(folder / "tokenizer.json").get("added_tokens") or []
    for token in listed:
        ids[str(token["content"])] = int(token["id"])
    decoded: dict[str, dict[str, Any]] = config.get("added_tokens_decoder") or {}
    for i, token in decoded.items():
        ids.setdefault(str(token["content"]), int(i))
    for text, i in _read(folder / "added_tokens.json").items():
        ids.setdefault(text, int(i))
    return {text: i for text, i in ids.items() if text}


def _texts(x: object) -> Iterator[str]:
    """Every text in what configurations write for one or several tokens or templates."""
    if isinstance(x, str):
        yield x
    elif isinstance(x, list):
        for one in cast("list[object]", x):
            yield from _texts(one)
    elif isinstance(x, dict):
        held = cast("dict[str, object]", x)
        kept = {key: held[key] for key in ("content", "template") if key in held}
        for one in (kept or held).values():
            yield from _texts(one)


def _integers(x: object) -> list[int]:
    if isinstance(x, bool):
        return []
    if isinstance(x, int):
        return [x]
    return [i for i in cast("list[object]", x) if isinstance(i, int)] if isinstance(x, list) else []


def _read(path: Path) -> Mapping[str, Any]:
    return read_json(path) if path.is_file() else {}
