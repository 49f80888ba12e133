"""What an inference server does with its KV cache, in numbers: no torch, no engine."""

from __future__ import annotations

from remnant.serving.counts import Mode, gone_blocks, kept_tokens, live_blocks, stable_blocks

__all__ = ["Mode", "gone_blocks", "kept_tokens", "live_blocks", "stable_blocks"]
