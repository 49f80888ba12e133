"""Reading blocks with a chat model of LangChain's, from sync and from async code."""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from remnant.memory.guard import render_data
from remnant.memory.llm import ChatModel, Message
from remnant.memory.record import Hit, Record
from remnant.routing import Answer, BlockReader, Conversation, Item, Settings

_SPEAKER = re.compile(r"(user|assistant|tool[^:\n]*): ")
_NOTHING = "Earlier conversations were looked through for what bears on the question; nothing was found."
_PARTLY = "{n} earlier conversations could not be read, so do not conclude from silence."


class Recent(OrderedDict[str, Any]):
    """Extractions made last, by a digest of the block and the question, so that the steps of a run share them."""

    def __init__(self, most: int = 512) -> None:
        """Hold `most` at most."""
        super().__init__()
        self._most, self._lock = most, Lock()

    def __setitem__(self, key: str, value: Any) -> None:
        """Keep one more; the oldest goes."""
        with self._lock:
            super().__setitem__(key, value)
            while len(self) > self._most:
                self.popitem(last=False)


def extracted(
    model: ChatModel, question: str, conversations: Sequence[Conversation], settings: Settings, cache: Recent
) -> Answer:
    """What a model quotes of conversations, block by block; a block that fails twice is missing, not empty."""

    def complete(prompt: str) -> str:
        return model.generate([Message("user", prompt)]).text

    return _reader(complete, settings, cache).extract(question, conversations)


async def aextracted(
    model: ChatModel, question: str, conversations: Sequence[Conversation], settings: Settings, cache: Recent
) -> Answer:
    """See `extracted`; the model is awaited on this loop while threads wait for it."""
    loop = asyncio.get_running_loop()

    async def asked(prompt: str) -> str:
        return (await model.agenerate([Message("user", prompt)])).text

    def complete(prompt: str) -> str:
        return asyncio.run_coroutine_threadsafe(asked(prompt), loop).result()

    return await asyncio.to_thread(_reader(complete, settings, cache).extract, question, conversations)


def _reader(complete: Callable[[str], str], settings: Settings, cache: Recent) -> BlockReader:
    return BlockReader(complete, block_size=settings.block, parallel=settings.parallel, cache=cache)


def as_block(found: Answer) -> str:
    """Quotes as data for a prompt: they are what somebody said, never instructions."""
    hits = [
        Hit(item.id, item.quote, 0.0, Record(_line(item), kind="quote", trust="tool", id=item.id), {})
        for item in found.items
    ]
    parts = [render_data(hits) if hits else _NOTHING]
    if found.missing:
        parts.append(_PARTLY.format(n=len(found.missing)))
    return "\n".join(parts)


def _line(item: Item) -> str:
    """When and by whom it was said; `assistant:` at the head of a line would be taken for a role's marker."""
    who, said = item.speaker, item.quote
    if found := _SPEAKER.match(said):
        who, said = found[1], said[found.end() :]
    return " ".join(part for part in (item.date, f"{who} said:" if who else "", said) if part)
