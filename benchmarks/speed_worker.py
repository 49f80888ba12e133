"""One side of the comparison with kvpress: answers one JSON line on stdout per JSON line on stdin.

Runs in the environment of its interpreter and imports there only what it times. Requests:
`{"do": "versions"}`, `{"do": "prepare", "side": "ours"|"theirs", "size": N, "duel": {...}}`, `{"do": "steps", "which":
"evicting"|"stock", "n": N}`; the last answers the seconds of process time of every step.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import Any

import torch
import transformers
from speed_lib import fill_ours, fill_stock, make_model, step
from transformers import DynamicCache


class Worker:
    """A model and two caches of equal size: one that evicts, and the stock one that does not."""

    def __init__(self) -> None:
        """Make two equal models: a press leaves hooks on the one that it compresses."""
        self.models = {"stock": make_model(), "evicting": make_model()}
        self.open = contextlib.ExitStack()
        self.caches: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        """Versions of what is timed here."""
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def prepare(self, side: str, size: int, duel: dict[str, Any]) -> dict[str, Any]:
        """Fill both caches."""
        torch.manual_seed(0)
        self.open.close()
        model = self.models["evicting"]
        stock = DynamicCache(config=model.config)
        fill_stock(stock, size)
        self.caches = {"stock": stock}
        if side == "ours":
            from remnant_hf import RemnantCache

            cache = RemnantCache(model.config, duel["policy"], budget=size, **dict(duel["options"]))
            fill_ours(cache, size)
        else:
            cache = DynamicCache(config=model.config)
            fill_stock(cache, size)
            self.open.enter_context(_press(duel, size)(model))
        self.caches["evicting"] = cache
        return {"ok": True}

    def steps(self, which: str, n: int) -> dict[str, Any]:
        """Time n decoded tokens."""
        seconds = [step(self.models[which], self.caches[which]) for _ in range(n)]
        return {"seconds": seconds, "stored": int(self.caches[which].layers[0].keys.shape[2])}


def _press(duel: dict[str, Any], size: int) -> Any:
    from kvpress import DecodingPress, KnormPress, SnapKVPress  # pyright: ignore[reportMissingImports]

    base = KnormPress() if duel["press"] == "knorm" else SnapKVPress(window_size=dict(duel["options"])["window"])
    interval = duel["interval"]
    return DecodingPress(base, compression_interval=interval, target_size=size, hidden_states_buffer_size=16)


def main() -> int:
    """Serve until stdin closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as fault:  # the parent reports it by name
            answer = {"fault": f"{type(fault).__name__}: {fault}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
