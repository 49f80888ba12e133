"""A model's own forward pass in two halves: the backbone over all columns, and what comes behind it over a few of them.

What comes behind the backbone is never written down here: it is the model's own code, run with a stand-in that hands
out states which the backbone gave before. So whatever a model does to its logits (soft caps, scales, biases) is done.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from remnant.errors import ConfigError

__all__ = ["Halves", "halves"]

_WITHIN = 1e-3
"""Part of the largest logit by which halves may differ from the whole; four steps of the type where those are more."""
_ACCEPTED = "models whose own forward makes the logits of a place from the state of that place alone"
_sound: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""Models whose halves were seen to give what the whole gives, and what was hooked into them then."""


class Halves:
    """One model, and the states of its newest pass.

    Hooks on the model itself do not run, those on its parts do; `halves` refuses a model whose logits depend on them.

    Args:
        model: a causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        """See the class."""
        self.model = model
        self._newest: Any = None

    @torch.no_grad()
    def run(self, rows: Tensor, columns: Tensor, **inputs: Any) -> Tensor:
        """The backbone over `[B, T]` tokens, the rest over some rows and columns, both `[R]`: `[R, V]` logits."""
        self.drop()
        record = _Record(self._backbone(), None, rows, columns)
        logits = self._rest(record, **inputs)
        self._newest = record.out
        return logits

    @torch.no_grad()
    def head(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits `[R, V]` of further rows and columns of the newest pass."""
        return self._rest(_Again(self._backbone(), self._newest, rows, columns), input_ids=None, use_cache=False)

    def drop(self) -> None:
        """Forget the states of the newest pass."""
        self._newest = None

    def _backbone(self) -> Any:
        return getattr(self.model, self.model.base_model_prefix)

    def _rest(self, stand_in: _Again, **inputs: Any) -> Tensor:
        out = type(self.model).forward(_standing(self.model, stand_in), **inputs)
        if not stand_in.ran:
            raise ConfigError(
                f"lazy logits of {type(self.model).__name__}, whose forward does not call its "
                f"{self.model.base_model_prefix!r}",
                accepted=_ACCEPTED,
                do="leave lazy_logits out",
            )
        return out.logits[:, 0].to(self.model.device)


class _Again:
    """Stands in for a backbone: hands out columns of states that were computed before.

    Args:
        backbone: whose place it takes.
        out: what that gave; None before it did.
        rows: `[R]` int64.
        columns: `[R]` int64.
    """

    def __init__(self, backbone: Any, out: Any, rows: Tensor, columns: Tensor) -> None:
        self._backbone, self.out, self._rows, self._columns = backbone, out, rows, columns
        self.ran = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_backbone"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the backbone gave, `[R, 1, d]` states of it."""
        self.ran = True
        states = getattr(self.out, "last_hidden_state", None)
        if not isinstance(states, Tensor):
            raise ConfigError(
                f"lazy logits over a backbone that gives a {type(self.out).__name__} without last_hidden_state",
                accepted="backbones with that output",
                do="leave lazy_logits out",
            )
        some = states[self._rows.to(states.device), self._columns.to(states.device)]
        return type(self.out)(**{**self.out, "last_hidden_state": some.unsqueeze(1)})


class _Record(_Again):
    """Runs the backbone, keeps what it gives, and hands out columns of that."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run."""
        self.out = self._backbone(*args, **kwargs)
        return super().__call__()


def _standing(model: Any, stand_in: _Again) -> Any:
    """The model with another backbone: a second object over the same weights, so that no other call sees it."""
    other: Any = object.__new__(type(model))
    other.__dict__.update(model.__dict__)
    other.__dict__["_modules"] = {**model._modules, model.base_model_prefix: stand_in}
    return other


def halves(model: Any) -> Halves:
    """The halves of a model, after a look at two tokens: they must give what the model gives.

    Raises:
        ConfigError: the model's forward cannot be cut, or gives other logits whole than in halves.
    """
    made = Halves(model)
    hooked = _hooked(model)
    if _sound.get(model) != hooked:
        _compare(made)
        _sound[model] = hooked
    return made


def _hooked(model: Any) -> Any:
    """What stands between a caller and the class's forward, as far as it can be seen."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    hooks = tuple(id(hook) for name in names for hook in getattr(model, name, {}).values())
    return type(model).forward, id(vars(model).get("forward")), hooks


@torch.no_grad()
def _compare(made: Halves) -> None:
    model, name = made.model, type(made.model).__name__
    if getattr(model, "base_model_prefix", "") not in model._modules:
        raise ConfigError(f"lazy logits of {name}, which names no backbone", accepted="models with base_model_prefix")
    ids = torch.arange(2, device=model.device)
    inputs = {"input_ids": ids[None], "position_ids": ids[None], "use_cache": False}
    whole = model(**inputs).logits[0].float()
    largest = float(whole.abs().max())
    try:
        far = float((made.run(ids[:1], ids[:1], **inputs) - whole[:1]).abs().max())
        far = max(far, float((made.head(ids[:1], ids[1:]) - whole[1:]).abs().max()))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"lazy logits of {name}, whose forward cannot be run without its backbone: {error}", accepted=_ACCEPTED
        ) from error
    finally:
        made.drop()
    if not far <= max(_WITHIN, 4 * torch.finfo(model.dtype).eps) * largest:
        raise ConfigError(
            f"lazy logits of {name}: run in halves, its logits differ by {far:.3g} where the largest is {largest:.3g}",
            accepted=_ACCEPTED,
            do="leave lazy_logits out, and plan without it",
        )
