"""What memory put into a prompt is marked, so that it is not kept as history nor learnt from when it comes back."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage, TextBlock

_KEY = secrets.token_bytes(32)
_MARKED = re.compile(r"<remnant-([0-9a-f]{16})>.*?</remnant-\1>", re.DOTALL)
_HUSK = re.compile(r"<(\w[\w-]*)>\s*\0\s*</\1>")


def marked(text: str) -> str:
    """The text between two lines with a token that no text can foresee; the same text has the same token."""
    token = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=_KEY).hexdigest()
    return f"<remnant-{token}>\n{text}\n</remnant-{token}>"


def cleaned(text: str) -> str:
    """The text without what memory put into it, and without the tags that a template put around that."""
    bare, count = _MARKED.subn("\0", text.replace("\0", "")) if "<remnant-" in text else (text, 0)
    while count:
        bare, count = _HUSK.subn("\0", bare)
    return bare.replace("\0", "").strip() if bare != text else text


def without_injected(message: ChatMessage) -> ChatMessage:
    """The message as it was before memory added to it; the same object if it holds nothing of memory's."""
    if not any(isinstance(block, TextBlock) and _MARKED.search(block.text) for block in message.blocks):
        return message
    blocks = [TextBlock(text=cleaned(b.text)) if isinstance(b, TextBlock) else b for b in message.blocks]
    kept = [block for block in blocks if not isinstance(block, TextBlock) or block.text]
    return message.model_copy(update={"blocks": kept})


def all_without_injected(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Each message as `without_injected` has it."""
    return [without_injected(message) for message in messages]
