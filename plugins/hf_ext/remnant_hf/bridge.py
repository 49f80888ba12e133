"""The attention bridge: how a cache layer sees the queries of its own attention.

`AttentionInterface.get_interface` is wrapped once per process. The wrapped function passes every call through unless
its key tensor carries a tag that our `update` put there; a tagged call becomes `layer.attend(...)`. Nothing is
installed on a model, no configuration changes, and the tag dies with the tensor.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from remnant.errors import HostVersionError

__all__ = ["install", "installed", "set_pending", "tag", "uninstall"]

_TAG = "_remnant_layer"
_MARK = "_remnant_original"
_lock = threading.Lock()
_local = threading.local()
_wrapped: dict[Callable[..., Any], Callable[..., Any]] = {}


def tag(key: Tensor, layer: Any) -> Tensor:
    """Let `key` lead the attention call to `layer`; it must be a view that nobody else holds.

    Tagging a stored tensor would tie layer and tensor into a cycle and delay the release of the memory.
    """
    setattr(key, _TAG, layer)
    return key


def set_pending(layer: Any) -> None:
    """Remember the layer for attention classes that build a new key tensor after `update` (MLA).

    Only as long as its cache lives: a pass that raises between `update` and its attention leaves nothing to the next.
    """
    if not torch.compiler.is_compiling():
        _local.layer = weakref.ref(layer)


def _claim(module: Any, key: Tensor) -> Any:
    """The layer that this attention call belongs to, or None; a pending layer is used at most once."""
    layer = getattr(key, _TAG, None)
    if torch.compiler.is_compiling():
        return layer
    found, _local.layer = getattr(_local, "layer", None), None
    pending = found() if layer is None and found is not None else None
    if pending is None or pending.index != getattr(module, "layer_idx", None):
        return layer
    awaits = getattr(pending, "awaits", None)  # a layer that cannot say is believed
    return pending if awaits is None or awaits(key) else layer


def _wrap(function: Callable[..., Any]) -> Callable[..., Any]:
    known = _wrapped.get(function)
    if known is not None:
        return known

    @functools.wraps(function)
    def bridged(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        layer = _claim(module, key)
        if layer is None:
            return function(module, query, key, value, attention_mask, *args, **kwargs)
        return layer.attend(function, module, query, key, value, attention_mask, *args, **kwargs)

    _wrapped[function] = bridged
    return bridged


def install() -> None:
    """Wrap the interface of transformers; calling it again changes nothing.

    Raises:
        HostVersionError: the interface has another form in this version of transformers.
    """
    import transformers
    from transformers.modeling_utils import AttentionInterface

    with _lock:
        original = getattr(AttentionInterface, "get_interface", None)
        if hasattr(original, _MARK):
            return
        names = list(inspect.signature(original).parameters) if original is not None else []
        if names != ["self", "attn_implementation", "default"]:
            raise HostVersionError("transformers", transformers.__version__, ">=5.19,<6")

        @functools.wraps(original)  # pyright: ignore[reportArgumentType]
        def get_interface(self: Any, attn_implementation: Any, default: Any) -> Any:
            return _wrap(original(self, attn_implementation, default))  # pyright: ignore[reportOptionalCall]

        setattr(get_interface, _MARK, original)
        AttentionInterface.get_interface = get_interface


def installed() -> bool:
    """Whether the bridge is in place."""
    from transformers.modeling_utils import AttentionInterface

    return hasattr(AttentionInterface.get_interface, _MARK)


def uninstall() -> None:
    """Put the original interface back; caches of ours stop working until `install` is called again."""
    from transformers.modeling_utils import AttentionInterface

    with _lock:
        original = getattr(AttentionInterface.get_interface, _MARK, None)
        if original is not None:
            AttentionInterface.get_interface = original
            _wrapped.clear()
