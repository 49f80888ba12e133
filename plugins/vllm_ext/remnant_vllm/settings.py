"""What the user asked for, by flag for the engine and by `extra_args` for a request; checked once, then plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from remnant.errors import ConfigError, unknown
from remnant.kv import Policy, get_policy
from remnant.kv.policy import policy_class
from remnant_vllm.asked import DRAFTERS, KEY
from remnant_vllm.counts import Mode, gone_blocks, stable_blocks
from remnant_vllm.supply import check_supply, queries_needed

__all__ = ["Settings"]

_OWN = ("policy", "budget", "mode", "base")
_PER_REQUEST = ("off", "budget")


@dataclass(frozen=True)
class Settings:
    """The part of `--additional-config` under `remnant`, and what a request changed about it.

    Attributes:
        policy: name of a policy.
        budget: tokens kept per KV head, protected ones included; None evicts nothing.
        mode: `prompt` compresses each prompt once; `stream` keeps the cache bounded while decoding too.
        options: options of the policy, as sorted pairs, so that settings can be hashed and compared.
        base: `flash` or `triton`, the stock backend underneath on CUDA; the CPU has one only.
    """

    policy: str
    budget: int | None
    mode: Mode
    options: tuple[tuple[str, Any], ...] = ()
    base: str = "flash"

    @staticmethod
    def parse(given: object) -> Settings:
        """Check what was given under `remnant`.

        Args:
            given: for example `{"policy": "snapkv", "budget": 1024, "mode": "prompt", "window": 32}`; every key that
                is not policy, budget or mode is an option of the policy.

        Raises:
            ConfigError: not a mapping, a key is missing or unknown, or a value is out of range.
            UnsupportedPolicy: vLLM cannot give what the policy needs; names both sides.
        """
        where = f"additional_config[{KEY!r}]"
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where} is {type(given).__name__}", accepted="a mapping with policy and budget")
        keys = cast("Mapping[str, Any]", given)
        for key in ("policy", "budget"):
            if key not in keys:
                raise ConfigError(
                    f"{where} has no {key!r}",
                    accepted=f"{', '.join(_OWN)}, options of the policy; {', '.join(DRAFTERS)} for a drafter",
                )
        name, budget = str(keys["policy"]), keys["budget"]
        options = {key: value for key, value in keys.items() if key not in _OWN}
        policy = get_policy(name, **options)
        mode = keys.get("mode") or ("prompt" if _compresses_prompts(policy) else "stream")
        if mode not in ("prompt", "stream"):
            raise ConfigError(f"{where}: mode={mode!r}", accepted="prompt, stream")
        base = keys.get("base", "flash")
        if base not in ("flash", "triton"):
            raise ConfigError(f"{where}: base={base!r}", accepted="flash, triton")
        settings = Settings(name, budget, mode, tuple(sorted(options.items())), base)
        settings._check(where)
        return settings

    def _check(self, where: str) -> None:
        tokens = self.budget
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ConfigError(f"{where}: budget={tokens!r}", accepted="an integer of at least 1, in tokens per KV head")
        policy = self.make()
        if tokens < policy.minimum:
            raise ConfigError(
                f"{where}: budget={tokens} is below what policy {self.policy!r} needs with these options",
                accepted=f"at least {policy.minimum}",
            )
        check_supply(policy, self.mode)

    def make(self) -> Policy:
        """The policy object; one per distinct settings."""
        return _make(self.policy, self.options)

    def for_request(self, extra_args: Mapping[str, Any] | None) -> Settings:
        """These settings as one request wants them.

        Args:
            extra_args: `SamplingParams.extra_args`. Under `remnant`: `off` (bool), `budget`, and options of the policy;
                a mapping, or one as JSON text.

        Raises:
            ConfigError: a key or value is not accepted; policy and mode belong to the engine.
        """
        given = (extra_args or {}).get(KEY)
        if given is None:
            return self
        where = f"extra_args[{KEY!r}]"
        if isinstance(given, str):  # over HTTP, `vllm_xargs` carries no mappings
            given = _decode(given, where)
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where} is {type(given).__name__}", accepted="a mapping, or one as JSON text")
        keys = dict(cast("Mapping[str, Any]", given))
        for key in ("policy", "mode", "base"):
            if keys.pop(key, getattr(self, key)) != getattr(self, key):
                raise ConfigError(f"{where} changes {key!r}, which belongs to the engine", accepted=getattr(self, key))
        off, budget = keys.pop("off", False), keys.pop("budget", self.budget)
        if not isinstance(off, bool):
            raise ConfigError(f"{where}: off={off!r}", accepted="true, false")
        accepted = {*policy_class(self.policy).__dataclass_fields__, *_PER_REQUEST}
        for key in keys:
            if key not in accepted:
                raise unknown(f"key in {where}:", key, accepted)
        options = tuple(sorted({**dict(self.options), **keys}.items()))
        own = replace(self, budget=budget, options=options)
        own._check(where)
        if self.mode == "stream" and self.budget is not None and (off or budget > self.budget):
            raise ConfigError(
                f"{where} asks for more than the engine's budget of {self.budget}",
                accepted="a smaller budget: in mode 'stream' the pool is sized for the engine's own",
            )
        return replace(own, budget=None) if off else own

    def gone(self, computed: int, prompt_len: int, block_size: int) -> int:
        """Leading blocks that are gone; see `gone_blocks`."""
        if self.budget is None:
            return 0
        return gone_blocks(self.mode, computed, prompt_len, self.budget, block_size)

    @property
    def by_layer(self) -> bool:
        """Whether layers have different budgets."""
        return type(self.make()).layer_share is not Policy.layer_share

    def stable(self, prompt_len: int, block_size: int) -> int | None:
        """Leading tokens in blocks that eviction never writes to; None when it never writes at all."""
        if self.budget is None:
            return None
        blocks = stable_blocks(self.mode, prompt_len, self.budget, block_size)
        return None if blocks is None else blocks * block_size

    def reusable(self, prompt_len: int, block_size: int) -> int:
        """Leading prompt tokens that may come from elsewhere: a prefix cache or a store.

        Eviction writes to none of their blocks, and enough of the prompt is left to compute for the policy to see the
        queries that it decides by. A multiple of the block size unless nothing is ever evicted.
        """
        stable = self.stable(prompt_len, block_size)
        if stable is None:
            return prompt_len
        unseen = max(0, prompt_len - queries_needed(self.make(), prompt_len))
        return min(stable, unseen // block_size * block_size)


def _decode(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error}", accepted='for example "{\\"budget\\": 64}"') from None


@lru_cache(maxsize=256)
def _make(name: str, options: tuple[tuple[str, Any], ...]) -> Policy:
    return get_policy(name, **dict(options))


def _compresses_prompts(policy: Policy) -> bool:
    return any(trigger.kind == "prefill_end" for trigger in policy.when)
