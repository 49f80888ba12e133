"""How many blocks of a request are gone: the one thing that scheduler and worker must agree on.

Both compute it from lengths they know anyway, so no message ever passes between them. Which tokens survive is the
worker's own business. It stands here, apart from the plugin, because a plan for a server needs the same numbers.
"""

from __future__ import annotations

from typing import Literal

from remnant.errors import ConfigError

__all__ = ["Mode", "gone_blocks", "kept_tokens", "live_blocks", "stable_blocks"]

Mode = Literal["prompt", "stream"]


def gone_blocks(mode: Mode, computed: int, prompt_len: int, budget: int, block_size: int) -> int:
    """Leading blocks of a request that have gone back to the pool.

    Args:
        mode: `prompt` evicts once, when the prompt is in; `stream` at every step, so that the cache stays bounded.
        computed: tokens of the request whose keys and values are written.
        prompt_len: tokens of its prompt.
        budget: tokens kept per KV head, at least 1.
        block_size: tokens per block.

    Returns:
        Whole blocks; never more than leave `budget` tokens.
    """
    if mode == "prompt":
        return max(0, (prompt_len - budget) // block_size) if computed >= prompt_len else 0
    return max(0, (computed - budget) // block_size)


def stable_blocks(mode: Mode, prompt_len: int, budget: int, block_size: int) -> int | None:
    """Leading blocks that eviction never writes to, so that they may be shared, hashed and stored.

    Returns:
        A count of blocks, or None when the request evicts nothing, whatever comes.
    """
    if mode == "stream":
        return 0
    return gone_blocks(mode, prompt_len, prompt_len, budget, block_size) or None


def live_blocks(budget: int, in_flight: int, block_size: int) -> int:
    """Most blocks that a request holds at once in mode `stream`, new tokens included.

    Args:
        budget: tokens kept per KV head.
        in_flight: most tokens written before the scheduler hears of it: those of a step, times the steps that overlap.
        block_size: tokens per block.
    """
    return -(-(budget + in_flight + block_size) // block_size) + 1


def kept_tokens(prompt_len: int, budget: int, block_size: int, mode: Mode = "prompt") -> int:
    """Tokens of a prompt that stay in vLLM: the budget, and what does not fill a block on top of it.

    Give this as the `budget` of a `RemnantCache` and Hugging Face keeps the same number.

    Args:
        prompt_len: tokens of the prompt.
        budget: tokens per KV head as configured.
        block_size: vLLM's block size, in tokens.
        mode: `prompt` or `stream`; right after the prompt both keep the same number.

    Raises:
        ConfigError: a number below 1, or an unknown mode.

    Example: kept_tokens(600, 128, 32) -> 152
    """
    for name, value in (("prompt_len", prompt_len), ("budget", budget), ("block_size", block_size)):
        if value < 1:
            raise ConfigError(f"{name}={value}", accepted="an integer of at least 1")
    if mode not in ("prompt", "stream"):
        raise ConfigError(f"mode={mode!r}", accepted="prompt, stream")
    return prompt_len - gone_blocks(mode, prompt_len, prompt_len, budget, block_size) * block_size
