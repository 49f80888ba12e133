"""What tensors really take: bytes alive, counted as they come and go, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Counts the storages of all tensors that are made inside the block, and of those it was given.

    Every operation is slowed down; scratch that an operation allocates and frees by itself is not seen.

    Args:
        models: modules whose parameters and buffers are alive already.

    Example:
        with LiveBytes(model) as live:
            model.generate(**inputs)
        live.peak <= plan.total
    """

    def __init__(self, *models: Any) -> None:
        """See the class."""
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.now = 0
        """Bytes alive."""
        self.peak = 0
        """Most bytes alive at once."""
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        for model in models:
            for tensor in (*model.parameters(), *model.buffers()):
                self._note(tensor)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        self._walk(out)
        return out

    def _walk(self, out: Any) -> None:
        if isinstance(out, Tensor):
            self._note(out)
        elif isinstance(out, (list, tuple)):
            for each in out:  # pyright: ignore[reportUnknownVariableType]
                self._walk(each)

    def _note(self, tensor: Tensor) -> None:
        storage: Any = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen.add(storage)
        count = int(storage.nbytes())
        self.now += count
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, count)

    def _gone(self, count: int) -> None:
        self.now -= count
