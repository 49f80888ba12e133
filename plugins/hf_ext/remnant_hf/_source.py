"""Where the drafter of a call comes from: a name or a model gives every call its own, an object is lent to one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from remnant.errors import ConfigError
from remnant.speculative.drafter import Drafter, get_drafter
from remnant_hf import _refusals as refuse
from remnant_hf._limits import refuse_short

__all__ = ["Source"]

_lock = threading.Lock()
_lent: set[int] = set()


class Source:
    """A drafter by name, a model that drafts, or a `Drafter`.

    Args:
        drafter: see `speculate`.
        options: of a drafter by name.

    Raises:
        ConfigError: it is none of the three, or its options are not accepted.
    """

    def __init__(self, drafter: Any, options: dict[str, Any]) -> None:
        """See the class."""
        self.drafter, self.options = drafter, options
        self.named, self.model = isinstance(drafter, str), hasattr(drafter, "config") and callable(drafter)
        if isinstance(drafter, str):
            get_drafter(drafter, **options)
        elif not self.model and not isinstance(drafter, Drafter):
            raise ConfigError(
                f"drafter of type {type(drafter).__name__}",
                accepted="a drafter's name, a causal language model, a Drafter",
            )
        elif options:
            raise ConfigError(f"options {', '.join(options)} beside a drafter object", accepted="those of a named one")

    @property
    def name(self) -> str:
        """For messages."""
        return self.drafter if self.named else type(self.drafter).__name__

    @property
    def bytes(self) -> int:
        """Bytes of weights that one draft step reads; 0 where there are none."""
        if self.model:
            return refuse.parameter_bytes(self.drafter)
        return 0 if self.named else int(getattr(self.drafter, "weight_bytes", 0))

    def check(self, target: Any, one_tokenizer: bool, allow_larger: bool, longest: int) -> None:
        """Refuse a target or a length that this drafter cannot serve; see `refuse_vocabulary` and `refuse_larger`."""
        if self.model:
            refuse.refuse_model(self.drafter)
            refuse.refuse_headless(self.drafter)
            refuse_short(self.drafter, longest, self.name)
            size, spare = refuse.vocab_size(self.drafter), one_tokenizer
            if not allow_larger:
                refuse.refuse_larger(target, self.drafter, self.name)
        else:
            size, spare = None if self.named else self.drafter.vocab_size, True
        refuse.refuse_vocabulary(target, size, self.name, spare)

    @contextmanager
    def lend(self, logits: bool = False) -> Iterator[Drafter]:
        """A drafter for one call.

        Args:
            logits: a model keeps its logits with each draft, for a tilt.

        Raises:
            ConfigError: the object is drafting for another call at this moment.
        """
        if self.named:
            drafter = get_drafter(self.drafter, **self.options)
            yield drafter
            finish = getattr(drafter, "finish", None)
            if finish is not None:  # what was written goes to the drafter's store, where it has one
                finish()
        elif self.model:
            yield _of_model(self.drafter, logits)
        else:
            with _lock:
                if id(self.drafter) in _lent:
                    raise ConfigError(
                        f"drafter {self.name!r} is drafting for another call",
                        accepted="one call at a time per object",
                        do="make one drafter per thread, or pass a name or a model",
                    )
                _lent.add(id(self.drafter))
            try:
                yield self.drafter
            finally:
                with _lock:
                    _lent.discard(id(self.drafter))


def _of_model(model: Any, logits: bool) -> Drafter:
    from remnant.speculative.drafters.model import ModelDrafter
    from remnant_hf._target import ModelTarget

    return ModelDrafter(ModelTarget(model, revocable=True), logits=logits)
