"""A history of conversations: read from a file, cut into blocks, shown as text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from remnant.errors import ConfigError
from remnant.routing.request import count_tokens

_FORMS = "a JSON list or JSON Lines of conversations; each a list of messages, or an object with 'messages'"
_TEXT = ("content", "text")
_SPEAKER = ("role", "speaker", "name")


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Args:
        id: names it in extractions.
        text: what was said, one `speaker: words` per line.
        date: when, as text that sorts by time (ISO 8601); empty is unknown.
    """

    id: str
    text: str
    date: str = ""

    @property
    def tokens(self) -> int:
        """Tokens, estimated."""
        return count_tokens(self.text)


def read_history(path: str | Path) -> list[Conversation]:
    """Read a history file.

    Args:
        path: JSON or JSON Lines. A message is text, or an object with `content` or `text` and maybe `role`,
            `speaker` or `name`; a conversation is a list of messages, or an object with `messages` and maybe
            `id` and `date`.

    Raises:
        ConfigError: the file cannot be read or has another form; names the line or the conversation.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"history {str(path)!r} cannot be read: {error}", accepted=_FORMS) from error
    return [_conversation(item, i) for i, item in enumerate(_items(text, str(path)), start=1)]


def blocks(conversations: Sequence[Conversation], size: int) -> list[list[Conversation]]:
    """Cut a history into blocks of at most `size` conversations, in order.

    Raises:
        ConfigError: size is below 1.
    """
    if size < 1:
        raise ConfigError(f"block size {size}", accepted="1 or more")
    return [list(conversations[i : i + size]) for i in range(0, len(conversations), size)]


def history_key(conversations: Sequence[Conversation], store_version: str = "") -> str:
    """A key for caches of a history: another one as soon as anything in it, or the store's version, changes.

    Returns:
        64 hexadecimal digits.
    """
    parts = [store_version, *(part for c in conversations for part in (c.id, c.date, c.text))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _items(text: str, path: str) -> list[Any]:
    try:
        whole: Any = json.loads(text) if text.strip() else []
    except ValueError:
        return _lines(text, path)
    if isinstance(whole, dict):
        found = cast("dict[str, Any]", whole)
        return cast("list[Any]", found["conversations"]) if "conversations" in found else [found]
    if not isinstance(whole, list):
        raise ConfigError(f"history {path!r} is no list", accepted=_FORMS)
    return cast("list[Any]", whole)


def _lines(text: str, path: str) -> list[Any]:
    found: list[Any] = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ConfigError(f"history {path!r}, line {number}: {error}", accepted=_FORMS) from error
    return found


def _conversation(item: Any, number: int) -> Conversation:
    name, date = f"c{number}", ""
    messages: Any = item
    if isinstance(item, dict):
        given = cast("dict[str, Any]", item)
        name, date = str(given.get("id", name)), str(given.get("date", ""))
        messages = given.get("messages")
    if not isinstance(messages, list):
        raise ConfigError(f"conversation {number} has no list of messages", accepted=_FORMS)
    lines = [_line(message, number) for message in cast("list[Any]", messages)]
    return Conversation(name, "\n".join(lines), date)


def _line(message: Any, number: int) -> str:
    if isinstance(message, str):
        return message
    if isinstance(message, dict):
        given = cast("dict[str, Any]", message)
        text = next((given[key] for key in _TEXT if isinstance(given.get(key), str)), None)
        speaker = next((given[key] for key in _SPEAKER if given.get(key)), "")
        if text is not None:
            return f"{speaker}: {text}" if speaker else text
    raise ConfigError(f"a message of conversation {number} has no text", accepted="text, or an object with 'content'")
