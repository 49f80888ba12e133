"""A chat model that becomes known later: that of the agent which the memory serves; until then distillation waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remnant.memory.errors import ModelError
from remnant.memory.llm import ChatModel, Completion, Message


class LateModel:
    """A `ChatModel` that passes every call to one which a host finds.

    A host's own class says where models come from: it sets `found`, or overrides `look`.

    Args:
        missing: what is wrong while none is known, for the error.
        do: what its reader can do about it.
    """

    def __init__(self, missing: str, do: str) -> None:
        """See the class."""
        self.found: ChatModel | None = None
        self._missing, self._do = missing, do

    def look(self) -> ChatModel | None:
        """Where a host may find a model unasked; asked for until there is one."""
        return None

    @property
    def ready(self) -> bool:
        """Whether it is known."""
        if self.found is None:
            self.found = self.look()
        return self.found is not None

    @property
    def model_id(self) -> str:
        """Its name."""
        return self.found.model_id if self.ready and self.found else "the agent's"

    def generate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `ChatModel`.

        Raises:
            ModelError: no model is known yet.
        """
        return self._known().generate(messages, schema=schema, **options)

    async def agenerate(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None, **options: Any
    ) -> Completion:
        """See `generate`."""
        return await self._known().agenerate(messages, schema=schema, **options)

    def _known(self) -> ChatModel:
        if not self.ready or self.found is None:
            raise ModelError(self._missing, do=self._do)
        return self.found
