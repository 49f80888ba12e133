"""Facts about the requests of a step that attention metadata does not carry: prompt lengths and settings per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from remnant_vllm._compat.engine import GPUModelRunner, model_runner_v2, wrap_once
from remnant_vllm.asked import eviction
from remnant_vllm.settings import Settings

__all__ = ["Rows", "install", "rows"]


@dataclass(frozen=True)
class Known:
    """What is remembered about a request while the worker knows it."""

    prompt_len: int
    settings: Settings


@dataclass
class Rows:
    """One entry per row of the batch, in its order.

    Attributes:
        ids: request ids.
        prompt_lens: tokens of each prompt.
        settings: what each request wants; its budget is the average over layers.
        alive: every request that the worker knows, waiting ones too; what is remembered about others can go.
        block_sizes: layer name -> tokens per block of the pool, which may be more than per block of the kernel.
    """

    ids: Sequence[str] = ()
    prompt_lens: Sequence[int] = ()
    settings: Sequence[Settings] = ()
    alive: frozenset[str] = frozenset()
    block_sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    known: dict[str, Known] = field(default_factory=dict[str, Known])
    config: Any = None

    def clear(self) -> None:
        """No rows: attention of a dry run, or of an engine that did not ask for us."""
        self.ids, self.prompt_lens, self.settings = (), (), ()

    def publish(self, ids: Sequence[str]) -> None:
        """Show the rows of a step."""
        facts = [self.known[name] for name in ids]
        self.ids = ids
        self.prompt_lens = [fact.prompt_len for fact in facts]
        self.settings = [fact.settings for fact in facts]

    def meet(self, name: str, prompt_len: int, params: Any, given: object) -> None:
        """Remember a request."""
        own = Settings.parse(given).for_request(params.extra_args if params is not None else None)
        self.known[name] = Known(prompt_len, own)

    def layout(self, kv_cache_config: Any) -> None:
        """Note the block sizes of an engine, once."""
        if self.config is kv_cache_config:
            return
        self.config = kv_cache_config
        groups = kv_cache_config.kv_cache_groups
        self.block_sizes = {name: group.kv_cache_spec.block_size for group in groups for name in group.layer_names}


_ROWS = Rows()


def rows() -> Rows:
    """The rows of the step that this process works on."""
    return _ROWS


def _with_rows(original: Any) -> Any:
    """V1 `GPUModelRunner._build_attention_metadata`: leave the rows where the builders of this step look for them."""

    def _build_attention_metadata(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = eviction(self.vllm_config)
        _ROWS.clear()
        if given is not None:
            _ROWS.layout(self.kv_cache_config)
            batch = self.input_batch
            ids = list(batch.req_ids[: batch.num_reqs])
            if _ROWS.alive != self.requests.keys():
                _ROWS.alive = frozenset(self.requests)
                _ROWS.known = {name: known for name, known in _ROWS.known.items() if name in _ROWS.alive}
            for row, name in enumerate(ids):
                if name not in _ROWS.known:
                    prompt_len = int(batch.num_prompt_tokens[row])
                    _ROWS.meet(name, prompt_len, self.requests[name].sampling_params, given)
            _ROWS.publish(ids)
        return original(self, *args, **kwargs)

    return _build_attention_metadata


def _meeting(original: Any) -> Any:
    """V2 `GPUModelRunner.add_requests`: its batch keeps neither sampling parameters nor prompt lengths."""

    def add_requests(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        given = eviction(self.vllm_config)
        if given is not None:
            for new in scheduler_output.scheduled_new_reqs:
                _ROWS.meet(new.req_id, new.prompt_len, new.sampling_params, given)
            _ROWS.alive = frozenset(_ROWS.known)
        return original(self, scheduler_output, *args, **kwargs)

    return add_requests


def _parting(original: Any) -> Any:
    """V2 `GPUModelRunner.finish_requests`; preempted requests are added anew when they come back."""

    def finish_requests(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        for name in {*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())}:
            _ROWS.known.pop(name, None)
        _ROWS.alive = frozenset(_ROWS.known)
        return original(self, scheduler_output, *args, **kwargs)

    return finish_requests


def _with_rows_v2(original: Any) -> Any:
    """V2 `DefaultModelState.prepare_attn`."""

    def prepare_attn(self: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        _ROWS.clear()
        if all(name in _ROWS.known for name in input_batch.req_ids):  # those of a dry run are not
            _ROWS.publish(list(input_batch.req_ids))
            config = kwargs.get("kv_cache_config") or next((a for a in args if hasattr(a, "kv_cache_groups")), None)
            if config is not None:
                _ROWS.layout(config)
        return original(self, input_batch, *args, **kwargs)

    return prepare_attn


def install() -> None:
    """Wrap both runners; once per process."""
    wrap_once(GPUModelRunner, "_build_attention_metadata", _with_rows)
    second = model_runner_v2()
    if second is not None:
        runner, state = second
        wrap_once(runner, "add_requests", _meeting)
        wrap_once(runner, "finish_requests", _parting)
        wrap_once(state, "prepare_attn", _with_rows_v2)


install()
