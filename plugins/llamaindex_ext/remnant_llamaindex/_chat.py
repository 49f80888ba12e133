"""The chat store of LlamaIndex, made safe for conversations side by side.

`SQLAlchemyChatStore` makes its table on first use and believes that it is there while it is still being made.
"""

from __future__ import annotations

import asyncio
import threading

from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore


class FirstUse:
    """Lets one caller use a chat store first, and the others wait until it has.

    Args:
        store: the chat store.
    """

    def __init__(self, store: AsyncDBChatStore) -> None:
        """Not used yet. No lock of asyncio's: the sync methods of `Memory` run loops of their own."""
        self._store, self._done, self._lock = store, False, threading.Lock()

    async def over(self, session: str) -> None:
        """Return once the store has been used; its errors are the caller's."""
        while not self._done:
            if self._lock.acquire(blocking=False):
                try:
                    if not self._done:
                        await self._store.count_messages(session)
                        self._done = True
                finally:
                    self._lock.release()
            else:
                await asyncio.sleep(0.001)
