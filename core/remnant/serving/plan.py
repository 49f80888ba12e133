"""How many requests a server holds with and without eviction, before anybody starts it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from remnant.errors import ConfigError
from remnant.serving.counts import Mode, gone_blocks
from remnant.serving.model import BYTES, Model
from remnant.serving.pool import Engine, Eviction, Pool, Use, buckets

__all__ = ["Memory", "Request", "element_bytes", "plan"]

Shares = Callable[[int, int], Sequence[int]]
"""(full-attention layers, tokens of the prompt) -> budget of each of them; one entry when all are equal."""


@dataclass(frozen=True)
class Memory:
    """The memory of one device, in bytes.

    Attributes:
        total: of the device.
        utilization: fraction of it that vLLM may take (`--gpu-memory-utilization`).
        weights: of the model on this device.
        weights_from: where that figure comes from.
        overhead: activations, graphs and libraries; only known once vLLM has run.
        given: bytes for the KV cache, where they are known (`--kv-cache-memory-bytes`); overrides all of the above.
    """

    total: int = 0
    utilization: float = 0.9
    weights: int = 0
    weights_from: str = ""
    overhead: int = 0
    given: int | None = None

    def for_cache(self) -> int:
        """Bytes left for the KV cache.

        Raises:
            ConfigError: nothing is; says how much is missing.
        """
        if self.given is not None:
            return self.given
        left = int(self.total * self.utilization) - self.weights - self.overhead
        if left > 0:
            return left
        raise ConfigError(
            f"the weights ({size(self.weights)}) and {size(self.overhead)} of overhead do not fit into "
            f"{self.utilization:.0%} of {size(self.total)}: {size(-left)} or {-left} bytes are missing",
            do="take more devices (--tp), a larger one, or a smaller --overhead if you have measured it",
        )

    def to_dict(self) -> dict[str, Any]:
        """As data, with the result."""
        return {**asdict(self), "for_cache": self.for_cache()}


@dataclass(frozen=True)
class Request:
    """What every request looks like.

    Attributes:
        prompt: tokens.
        new: tokens that it writes.
    """

    prompt: int
    new: int = 0

    @property
    def total(self) -> int:
        """Tokens at its end."""
        return self.prompt + self.new


def element_bytes(model: Model, asked: str = "auto") -> tuple[str, int]:
    """(type, bytes per number) of weights and cache, by vLLM's rule for `--dtype auto`: half precision for float32.

    Raises:
        ConfigError: a type in which a cache cannot be evicted from.
    """
    name = asked
    if asked == "auto":
        name = model.dtype if model.dtype in ("float16", "bfloat16") else "bfloat16"
    if name not in BYTES:
        raise ConfigError(f"dtype {asked!r}", accepted=("auto", *BYTES))
    return name, BYTES[name]


def plan(
    model: Model,
    engine: Engine,
    memory: Memory,
    request: Request,
    budget: int,
    mode: Mode,
    shares: Shares | None = None,
) -> dict[str, Any]:
    """Compare one server without eviction and with it.

    Args:
        model: from `read_model`.
        engine: how the server is set.
        memory: of one device.
        request: what each request looks like.
        budget: tokens kept per KV head.
        mode: `prompt` or `stream`.
        shares: budgets of the layers, for a policy that gives them different ones.

    Returns:
        Data for `--json`; bytes and blocks are those of one device.

    Raises:
        ConfigError: nothing would be saved, the model has nothing to evict from, or a request does not fit.
    """
    full = sum(layer.window == "none" for layer in model.layers)
    _check(model, full, engine, request, budget, mode)
    budgets = tuple(shares(full, request.prompt)) if shares is not None else (budget,)
    memory_bytes = memory.for_cache()
    before = Pool(buckets(model.layers, engine), engine, memory_bytes)
    after = Pool(buckets(model.layers, engine, Eviction(mode, budgets)), engine, memory_bytes)
    stock, ours = before.use(request.prompt, request.total), after.use(request.prompt, request.total)
    _check_fit(after, ours, request)
    return {
        "model": _described(model, engine),
        "memory": memory.to_dict(),
        "engine": {**asdict(engine), "mode": mode, "budget": budget, "budgets": list(budgets)},
        "request": {"prompt": request.prompt, "new": request.new, "total": request.total}
        | _tokens(engine, request, budgets, mode),
        "without": _side(before, stock),
        "with": _side(after, ours),
        "gain": {
            "requests": ours.requests / stock.requests if stock.requests else None,
            "decoding": ours.decoding / stock.decoding if stock.decoding else None,
        },
        "notes": _notes(model, engine, memory, request, mode),
    }


def _check(model: Model, full: int, engine: Engine, request: Request, budget: int, mode: Mode) -> None:
    for name, value in (("budget", budget), ("block-size", engine.block_size), ("context", request.prompt)):
        if value < 1:
            raise ConfigError(f"{name}={value}", accepted="an integer of at least 1")
    if not full:
        raise ConfigError(
            f"{model.name} has no full-attention layer ({model.kinds()}): nothing can be evicted",
            accepted="models with full-attention layers",
        )
    heads = {layer.heads for layer in model.layers}
    if engine.tp < 1 or any(h % engine.tp and engine.tp % h for h in heads):
        raise ConfigError(
            f"tp={engine.tp} does not divide {', '.join(map(str, sorted(heads)))} KV heads, nor they it",
            accepted="a number of devices that shares heads evenly",
        )
    if not gone_blocks(mode, request.total, request.prompt, budget, engine.block_size):
        length = request.prompt if mode == "prompt" else request.total
        raise ConfigError(
            f"budget {budget} leaves nothing to evict of {length} tokens in blocks of {engine.block_size}: "
            "nothing is saved",
            accepted=f"at most {length - engine.block_size}" if length > engine.block_size else "",
            do="a smaller budget, or no eviction at all",
        )


def _check_fit(pool: Pool, use: Use, request: Request) -> None:
    missing = use.demanded_blocks - (pool.blocks - 1)
    if missing > 0:
        raise ConfigError(
            f"the pool of {max(0, pool.blocks - 1)} blocks is too small for one request of {request.total} tokens, "
            f"which needs {use.demanded_blocks}: {size(missing * pool.block_bytes)} or "
            f"{missing * pool.block_bytes} bytes are missing, and vLLM does not start",
            do="take a shorter --context, more memory or devices, or --mode stream, whose requests stay small",
        )


def _described(model: Model, engine: Engine) -> dict[str, Any]:
    layers = model.layers
    return {
        "name": model.name,
        "layers": model.kinds(),
        "kv_heads": sorted({layer.heads for layer in layers}),
        "kv_bytes_per_token": sum(layer.token_bytes(engine.element, engine.tp) for layer in layers),
        "evictable_bytes_per_token": sum(
            layer.token_bytes(engine.element, engine.tp) for layer in layers if layer.window == "none"
        ),
    }


def _tokens(engine: Engine, request: Request, budgets: tuple[int, ...], mode: Mode) -> dict[str, float]:
    """Of a prompt, per KV head and on average over the layers."""
    gone = [gone_blocks(mode, request.prompt, request.prompt, budget, engine.block_size) for budget in budgets]
    evicted = sum(gone) * engine.block_size / len(budgets)
    return {"prompt_kept": request.prompt - evicted, "prompt_evicted": evicted}


def _side(pool: Pool, use: Use) -> dict[str, Any]:
    return {
        "blocks": pool.blocks,
        "block_bytes": pool.block_bytes,
        "block_tables": sum(pool.tables),
        "peak_bytes": use.peak_blocks * pool.block_bytes,
        "steady_bytes": use.steady_blocks * pool.block_bytes,
        **asdict(use),
    }


def _notes(model: Model, engine: Engine, memory: Memory, request: Request, mode: Mode) -> list[str]:
    notes: list[str] = []
    kept = {kind: count for kind, count in model.kinds().items() if kind in ("sliding", "chunked")}
    for kind, count in kept.items():
        notes.append(f"{count} {kind} layers evict nothing: vLLM frees what is behind their reach by itself")
    for kind, count in model.states.items():
        notes.append(f"{count} layers of kind {kind} are not counted: each holds a state of fixed size per request")
    if len({layer.token_bytes(engine.element, engine.tp) for layer in model.layers}) > 1:
        notes.append("layers have pages of different sizes, which vLLM evens out: counts of blocks are approximate")
    if model.positions and request.total > model.positions:
        notes.append(f"{request.total} tokens are more than the {model.positions} that the model was made for")
    if memory.given is None:
        notes.append(
            f"overhead of {size(memory.overhead)} is a guess: start vLLM once and give what it logs as available "
            "KV cache memory with --kv-memory"
        )
        if memory.weights_from.startswith("estimate"):
            notes.append("no weight files were found: their size is an estimate from the configuration")
    if mode == "prompt":
        notes.append(
            "a prompt is whole in the cache until it has been read; vLLM's own line 'Maximum concurrency' counts every "
            "request like that and does not change"
        )
    notes.append("vLLM also stops at --max-num-seqs")
    return notes


def size(count: int) -> str:
    """Bytes for people: `"1.50 GiB"`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value, _ = value / 1024, units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{value:.2f} {units[0]}"


def flags(policy: str, budget: int, mode: Mode, engine: Engine, request: Request) -> list[str]:
    """The flags of vLLM that make the server of a plan."""
    settings = {"remnant": {"policy": policy, "budget": budget, "mode": mode}}
    return [
        "--attention-backend", "CUSTOM",
        "--additional-config", json.dumps(settings),
        "--block-size", str(engine.block_size),
        "--max-model-len", str(request.total),
        "--max-num-batched-tokens", str(engine.chunk),
        *(["--tensor-parallel-size", str(engine.tp)] if engine.tp > 1 else []),
    ]  # fmt: skip
