"""`remnant plan`: how many requests a server holds with and without eviction."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from remnant.cli._output import Json, answer, print_table
from remnant.errors import ConfigError, UnsupportedPolicy

if TYPE_CHECKING:
    from remnant.serving.counts import Mode
    from remnant.serving.model import Model
    from remnant.serving.plan import Memory, Shares

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZES = "bytes (1000000), or a number with KiB, MiB, GiB, TiB, KB, MB, GB, TB (80GiB)"
_LARGE = 70 * 2**30  # bytes; above, vLLM's server takes longer steps


def plan(
    model: Annotated[str, typer.Option(help="A checkpoint's folder, its config.json, or a downloaded id.")],
    budget: Annotated[int, typer.Option(min=1, help="Tokens kept per KV head.")],
    context: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")],
    gpu_memory: Annotated[str | None, typer.Option(help="Of one device, as 80GiB.", metavar="SIZE")] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Tokens that each request writes.")] = 0,
    policy: Annotated[str, typer.Option(help="A name from 'remnant policies'.")] = "snapkv",
    mode: Annotated[str | None, typer.Option(help="prompt or stream; left out, as the policy works.")] = None,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per block.")] = 16,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto",
    tp: Annotated[int, typer.Option(min=1, help="Devices that share each layer.")] = 1,
    gpu_memory_utilization: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Fraction that vLLM may take.")
    ] = 0.9,
    weights_bytes: Annotated[str | None, typer.Option(help="Of the whole model.", metavar="SIZE")] = None,
    overhead: Annotated[str, typer.Option(help="Activations, graphs, libraries per device.", metavar="SIZE")] = "2GiB",
    kv_memory: Annotated[
        str | None, typer.Option(help="For the KV cache per device, if known: instead of --gpu-memory.", metavar="SIZE")
    ] = None,
    max_num_batched_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of a step.")] = None,
    sync: Annotated[bool, typer.Option("--sync", help="Without asynchronous scheduling, as on a CPU.")] = False,
    as_json: Json = False,
) -> None:
    """Plan a vLLM server: how many requests fit with and without eviction."""
    from remnant.serving.model import read_model
    from remnant.serving.plan import Request, element_bytes, flags
    from remnant.serving.plan import plan as compare
    from remnant.serving.pool import Engine

    def work(_: Any) -> dict[str, Any]:
        chosen, shares, unsure = _policy(policy, budget, mode)
        found = read_model(model)
        name, element = element_bytes(found, dtype)
        device = parse_size(gpu_memory, "gpu-memory") if gpu_memory else 0
        if gpu_memory and device < 2**20:
            raise ConfigError(f"gpu-memory {gpu_memory!r} has no unit", accepted=_SIZES)
        if not device and not kv_memory:
            raise ConfigError(
                "no memory was given", accepted="--gpu-memory or --kv-memory", do="e.g. --gpu-memory 80GiB"
            )
        given = parse_size(kv_memory, "kv-memory") if kv_memory else None
        chunk = max_num_batched_tokens or (8192 if device >= _LARGE else 2048)
        engine = Engine(block_size, element, tp, chunk, 1 if sync else 2)
        memory = _memory(found, engine.element, tp, device, gpu_memory_utilization, weights_bytes, overhead, given)
        request = Request(context, max_tokens)
        result = compare(found, engine, memory, request, budget, chosen, shares)
        result["model"]["dtype"] = name
        result["flags"] = flags(policy, budget, chosen, engine, request)
        result["notes"] += unsure
        return result

    answer(as_json, work, _show)


def parse_size(text: str, option: str) -> int:
    """Bytes from text; `GB` is a power of ten, `GiB` and `G` are powers of two.

    Raises:
        ConfigError: it is not a size.

    Example: parse_size("80GiB", "gpu-memory") -> 85899345920
    """
    match = re.fullmatch(r"([\d_]*\.?\d+)\s*([KMGT]?)(i?)(B?)", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise ConfigError(f"{option} {text!r}", accepted=_SIZES)
    unit, decimal = match[2].upper(), bool(match[4]) and not match[3]
    factor = 1000 ** "_KMGT".index(unit) if unit and decimal else _UNITS[unit]
    return int(float(match[1]) * factor)


def _policy(name: str, budget: int, mode: str | None) -> tuple[Mode, Shares | None, list[str]]:
    """(mode, budgets of the layers, notes); without torch a policy can only be taken at its name."""
    if mode not in (None, "prompt", "stream"):
        raise ConfigError(f"mode {mode!r}", accepted="prompt, stream")
    if find_spec("torch") is None:
        return (
            mode or "prompt",
            None,
            [f"policy {name!r} was not checked: that needs torch, pip install 'remnant[torch]'"],
        )
    from remnant.kv import Policy, get_policy

    policy = get_policy(name)
    if not policy.even or not policy.when:
        raise UnsupportedPolicy(
            f"policy {name!r} keeps other numbers of tokens than blocks can count", accepted="snapkv"
        )
    if budget < policy.minimum:
        raise ConfigError(f"budget {budget} with policy {name!r}", accepted=f"at least {policy.minimum}")
    default: Mode = "prompt" if any(trigger.kind == "prefill_end" for trigger in policy.when) else "stream"
    if type(policy).layer_share is Policy.layer_share:
        return mode or default, None, []
    return mode or default, lambda layers, n: [policy.layer_share(n, i, layers, budget) for i in range(layers)], []


def _memory(
    model: Model,
    element: int,
    tp: int,
    device: int,
    utilization: float,
    weights: str | None,
    overhead: str,
    given: int | None,
) -> Memory:
    """The device with its weights: as told, as stored, or as estimated."""
    from remnant.serving.checkpoint import estimated_bytes, find_config, stored_bytes
    from remnant.serving.plan import Memory

    if given is not None:
        return Memory(given=given)
    if weights:
        whole, source = parse_size(weights, "weights-bytes"), "given"
    elif (stored := stored_bytes(find_config(model.name).parent, element)) is not None:
        whole, source = stored, "weight files"
    else:
        whole, source = estimated_bytes(model.config, element), "estimate"
    return Memory(device, utilization, -(-whole // tp), source, parse_size(overhead, "overhead"))


def _show(found: dict[str, Any]) -> None:
    """What was read, the comparison, the notes and the flags."""
    from remnant.serving.plan import size

    model, memory, request, engine = found["model"], found["memory"], found["request"], found["engine"]
    layers = ", ".join(f"{count} {kind}" for kind, count in model["layers"].items())
    per_token = size(model["kv_bytes_per_token"])
    typer.echo(f"model    {model['name']}: {layers} layers, {model['dtype']}, {per_token} per token and device")
    weights = "" if memory["given"] is not None else f", weights {size(memory['weights'])} ({memory['weights_from']})"
    typer.echo(f"memory   {size(memory['for_cache'])} per device for the KV cache{weights}")
    evicted = request["prompt_evicted"] / request["prompt"]
    typer.echo(
        f"request  prompt of {request['prompt']} tokens, writes {request['new']}; "
        f"mode {engine['mode']} keeps {request['prompt_kept']:g} of the prompt and evicts {evicted:.1%}\n"
    )
    stock, ours = found["without"], found["with"]
    rows = [
        ("requests, one of them being read", stock["requests"], ours["requests"], _times(found["gain"]["requests"])),
        ("requests, all writing", stock["decoding"], ours["decoding"], _times(found["gain"]["decoding"])),
        ("bytes of a request, most", size(stock["peak_bytes"]), size(ours["peak_bytes"]), ""),
        ("bytes of a request, writing", size(stock["steady_bytes"]), size(ours["steady_bytes"]), ""),
        ("vLLM logs as maximum concurrency", f"{stock['concurrency']:.2f}x", f"{ours['concurrency']:.2f}x", ""),
    ]
    print_table(("per device" if engine["tp"] > 1 else "", "without", "with eviction", "gain"), rows)
    typer.echo("")
    for note in found["notes"]:
        typer.echo(f"note     {note}")
    typer.echo(f"\nvllm serve {shlex.quote(model['name'])} {shlex.join(found['flags'])}")


def _times(gain: float | None) -> str:
    return "" if gain is None else f"{gain:.2f}x"
