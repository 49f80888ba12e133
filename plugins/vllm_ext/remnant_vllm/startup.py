"""What is checked once, where the user's flag is read: that we can run here, with everything else that was asked."""

from __future__ import annotations

import logging
from typing import Any

from remnant.errors import ConfigError, RemnantError, UnsupportedPolicy
from remnant.kv import Policy, Rope
from remnant_vllm._compat.engine import InputProcessor, VLLMValidationError, check_host, wrap_once
from remnant_vllm.asked import eviction
from remnant_vllm.draft_checks import check_drafting, check_sampling
from remnant_vllm.ours import drafts_by_ours
from remnant_vllm.settings import Settings

__all__ = ["prepare", "rope_for"]

_log = logging.getLogger("vllm.remnant")


def prepare(vllm_config: Any) -> None:
    """Check flags, host and drafter; after this every part of the plugin may assume that they fit.

    Raises:
        HostVersionError: this vLLM is not one that the plugin knows.
        ConfigError: a flag has a value that is not accepted.
        UnsupportedPolicy: the policy or a combination of flags cannot work.
    """
    check_host()
    check_drafting(vllm_config)
    if drafts_by_ours(vllm_config):
        # Here and in the worker: vLLM makes the configuration of a drafter with weights there, which comes by, too.
        from remnant_vllm._compat.sampler import repair_sampling

        repair_sampling()
    wrap_once(InputProcessor, "process_inputs", _reading_requests)
    asked = eviction(vllm_config)
    if asked is None:
        return
    settings = Settings.parse(asked)
    for check in (_backend, _parallel, _quantised, _speculative, _connector):
        check(vllm_config, settings)
    import remnant_vllm.manager
    import remnant_vllm.spec  # noqa: F401  # registers before the first engine asks
    from remnant_vllm.metrics import install

    install()

    limit = vllm_config.model_config.max_model_len if vllm_config.model_config is not None else None
    if limit is not None and settings.budget is not None and settings.budget >= limit:
        _log.warning("remnant: budget %d is not below max_model_len %d; nothing is evicted", settings.budget, limit)
    if settings.mode == "stream" and vllm_config.cache_config.enable_prefix_caching:
        _log.warning("remnant: prefix caching finds nothing in mode 'stream', where no block keeps its content")


def _backend(config: Any, settings: Settings) -> None:
    attention = config.attention_config
    chosen = {getattr(attention, "backend", None), *(getattr(attention, "backend_per_kind", None) or {}).values()}
    if "CUSTOM" not in {getattr(backend, "name", str(backend)) for backend in chosen}:
        raise ConfigError(
            "additional_config asks for remnant, but its attention backend is not selected",
            do="add --attention-backend CUSTOM, or remove remnant from --additional-config",
        )
    model = config.model_config
    if model is not None and getattr(model, "use_mla", False):
        raise UnsupportedPolicy(
            f"model {model.model} uses latent attention (MLA) throughout",
            accepted="models with full-attention layers",
            do="leave out --attention-backend CUSTOM",
        )


def _parallel(config: Any, settings: Settings) -> None:
    parallel = config.parallel_config
    for flag in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, flag, 1) > 1:
            given = f"--{flag.replace('_', '-')} {getattr(parallel, flag)}"
            raise UnsupportedPolicy(
                f"{given} spreads the tokens of a request over ranks, each of which would evict by itself",
                accepted="tensor, pipeline and data parallel serving",
                do=f"leave out --{flag.replace('_', '-')}",
            )


def _quantised(config: Any, settings: Settings) -> None:
    kind = str(config.cache_config.cache_dtype)
    if kind not in ("auto", "float16", "bfloat16", "float32"):
        raise UnsupportedPolicy(
            f"--kv-cache-dtype {kind} stores codes that cannot be moved one token at a time here",
            accepted="auto, float16, bfloat16, float32",
        )


def _speculative(config: Any, settings: Settings) -> None:
    draft = config.speculative_config
    if draft is None:
        return
    if settings.mode == "stream":
        raise UnsupportedPolicy(
            "mode 'stream' with --speculative-config would evict by drafts that may be rejected",
            accepted="mode 'prompt' with it",
        )
    if draft.method == "draft_model":
        backend = getattr(draft, "attention_backend", None)
        if getattr(backend, "name", backend) != "CUSTOM":
            raise UnsupportedPolicy(
                "a draft model on another attention backend is fed the target's block table, which gives wrong tokens",
                do='add "attention_backend": "CUSTOM" to --speculative-config',
            )


def _connector(config: Any, settings: Settings) -> None:
    transfer = config.kv_transfer_config
    if transfer is None or transfer.kv_connector is None:
        return
    module = getattr(transfer, "kv_connector_module_path", None)
    if module != "remnant_vllm.connector":
        raise UnsupportedPolicy(
            f"KV connector {transfer.kv_connector!r} would store blocks after their tokens were evicted",
            accepted="RemnantConnector",
            do='use "kv_connector": "RemnantConnector", "kv_connector_module_path": "remnant_vllm.connector"',
        )


class RejectedRequest(ConfigError, VLLMValidationError):
    """A request whose options we do not accept; the server answers it with status 400 and this message."""

    def __init__(self, error: RemnantError) -> None:
        """Say what the error says."""
        super().__init__(error.given, accepted=error.accepted, do=error.do)
        self.parameter, self.value = "extra_args", None


def _reading_requests(original: Any) -> Any:
    """`InputProcessor.process_inputs`: a request that asks for nonsense is refused where its sender hears it."""

    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        asked = (getattr(params, "extra_args", None) or {}).get("remnant")
        try:
            check_sampling(self.vllm_config, params)
            if asked is not None:
                _check_request(self.vllm_config, params.extra_args)
        except RemnantError as error:
            raise RejectedRequest(error) from error
        return original(self, request_id, prompt, params, *args, **kwargs)

    return process_inputs


def _check_request(vllm_config: Any, extra_args: Any) -> None:
    given = eviction(vllm_config)
    if given is None:
        raise ConfigError(
            "extra_args has options for eviction by remnant, which is off in this engine",
            do="start it with --attention-backend CUSTOM and remnant in --additional-config",
        )
    Settings.parse(given).for_request(extra_args)


def rope_for(policy: Policy, vllm_config: Any) -> Rope | None:
    """The rotation of the model's keys, when the policy asks for it.

    Raises:
        UnsupportedPolicy: it cannot be rebuilt from the configuration.
    """
    if "rope" not in policy.needs:
        return None
    from remnant.kv.rope import rope_of

    return rope_of(vllm_config.model_config.hf_text_config)
