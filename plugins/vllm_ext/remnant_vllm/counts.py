"""How many blocks of a request are gone; defined once, in the core, where plans for a server are made as well."""

from __future__ import annotations

from remnant.serving.counts import Mode, gone_blocks, kept_tokens, live_blocks, stable_blocks

__all__ = ["Mode", "gone_blocks", "kept_tokens", "live_blocks", "stable_blocks"]
