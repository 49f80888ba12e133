"""Facts about the requests of a step that attention metadata does not carry: prompt lengths and settings per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from remnant_vllm._compat import GPUModelRunner, wrap_once
from remnant_vllm.settings import Settings

__all__ = ["Rows", "install", "rows"]


@dataclass
class Rows:
    """One entry per row of the batch, in its order.

    Attributes:
        ids: request ids.
        prompt_lens: tokens of each prompt.
        settings: what each request wants; its budget is the average over layers.
        alive: every request that the worker knows, waiting ones too; what is remembered about others can go.
    """

    ids: Sequence[str] = ()
    prompt_lens: Sequence[int] = ()
    settings: Sequence[Settings] = ()
    alive: frozenset[str] = frozenset()
    known: dict[str, Settings] = field(default_factory=dict[str, Settings])


_ROWS = Rows()


def rows() -> Rows:
    """The rows of the step that this process works on."""
    return _ROWS


def _publish(runner: Any) -> None:
    given = (runner.vllm_config.additional_config or {}).get("remnant")
    if given is None:
        _ROWS.ids, _ROWS.prompt_lens, _ROWS.settings = (), (), ()
        return
    batch = runner.input_batch
    ids = list(batch.req_ids[: batch.num_reqs])
    if _ROWS.alive != runner.requests.keys():
        _ROWS.alive = frozenset(runner.requests)
        _ROWS.known = {name: settings for name, settings in _ROWS.known.items() if name in _ROWS.alive}
    for name in ids:
        if name not in _ROWS.known:
            params = runner.requests[name].sampling_params
            own = Settings.parse(given).for_request(params.extra_args if params is not None else None)
            _ROWS.known[name] = own
    _ROWS.ids, _ROWS.prompt_lens = ids, batch.num_prompt_tokens[: batch.num_reqs].tolist()
    _ROWS.settings = [_ROWS.known[name] for name in ids]


def _with_rows(original: Any) -> Any:
    """`GPUModelRunner._build_attention_metadata`: leave the rows where the builders of this step look for them."""

    def _build_attention_metadata(self: Any, *args: Any, **kwargs: Any) -> Any:
        _publish(self)
        return original(self, *args, **kwargs)

    return _build_attention_metadata


def install() -> None:
    """Wrap the runner; once per process."""
    wrap_once(GPUModelRunner, "_build_attention_metadata", _with_rows)


install()
