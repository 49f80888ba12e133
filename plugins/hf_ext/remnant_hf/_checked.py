"""Drafts are looked at before a model reads them: a token that it does not know ends a GPU, not only a call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from remnant.errors import ConfigError, ShapeError
from remnant.speculative.drafter import Draft

__all__ = ["checked"]

_SLACK = 0.01


def checked(drafts: Any, rows: int, name: str, vocab_size: int) -> list[Draft]:
    """What `propose` gave, if it can be verified.

    Args:
        drafts: whatever came back.
        rows: drafts that were asked for.
        name: of the drafter, for messages.
        vocab_size: of the target.

    Raises:
        ConfigError: no list with one `Draft` per row.
        ShapeError: tokens that the target does not know, or distributions that are none.
    """
    if not isinstance(drafts, list | tuple) or [isinstance(draft, Draft) for draft in drafts] != [True] * rows:
        kinds = [type(draft).__name__ for draft in drafts] if isinstance(drafts, list | tuple) else drafts
        raise ConfigError(f"{kinds} from drafter {name!r}", accepted=f"a list with one Draft for each of {rows} rows")
    for draft in drafts:
        if len(draft):
            _check_ids(draft.ids, name, vocab_size)
            if draft.q is not None:
                _check_q(draft.q, name, vocab_size)
    return list(drafts)


def _check_ids(ids: Tensor, name: str, vocab_size: int) -> None:
    if ids.is_meta or bool(((ids < 0) | (ids >= vocab_size)).any()):
        given = "without values" if ids.is_meta else str(ids.tolist())
        raise ShapeError(f"draft ids {given} from drafter {name!r}", accepted=f"0 to {vocab_size - 1}")


def _check_q(q: Tensor, name: str, vocab_size: int) -> None:
    if q.shape[1] > vocab_size:
        raise ShapeError(f"distributions of {q.shape[1]} tokens from drafter {name!r}", accepted=str(vocab_size))
    if bool((q < 0).any()) or not bool(((q.float().sum(-1) - 1).abs() < _SLACK).all()):
        raise ShapeError(
            f"draft distributions from drafter {name!r} that are none",
            accepted="probabilities, 0 or more, that sum to 1",
            do="give probabilities, not logits",
        )
