"""One side of the comparison with kvpress: answers one JSON line on stdout per JSON line on stdin.

Runs in the environment of its interpreter and imports there only what it times. Requests:
`{"do": "versions"}`, `{"do": "prepare", "side": "ours"|"theirs", "context": N, "budget": N, "duel": {...}}`,
`{"do": "steps", "which": "evicting"|"stock", "n": N}`; the last answers the seconds of process time of every step.
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
    """A model and two caches: one that evicts from the context to the budget, and a stock one that never holds more."""

    def __init__(self) -> None:
        """Make two equal models: a press leaves hooks on the one that it compresses."""
        self.models = {"stock": make_model(), "evicting": make_model()}
        self.open = contextlib.ExitStack()
        self.caches: dict[str, Any] = {}
        self.interval = 1

    def versions(self) -> dict[str, str]:
        """Versions of what is timed here."""
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def prepare(self, side: str, context: int, budget: int, duel: dict[str, Any]) -> dict[str, Any]:
        """Fill both caches, the same tokens on either side, and decode until the first one is down to the budget."""
        torch.manual_seed(0)
        self.open.close()
        self.interval = duel["interval"]
        model = self.models["evicting"]
        stock = DynamicCache(config=model.config)
        fill_stock(stock, budget)
        self.caches = {"stock": stock}
        if side == "ours":
            from remnant_hf import RemnantCache

            cache = RemnantCache(model.config, duel["policy"], budget=budget, **dict(duel["options"]))
            fill_ours(cache, context)
        else:
            cache = DynamicCache(config=model.config)
            fill_stock(cache, context)
            self.open.enter_context(_press(duel, budget)(model))
        self.caches["evicting"] = cache
        stored = self.steps("evicting", 2 * self.interval)["stored"]
        if stored != budget:
            raise RuntimeError(f"{stored} tokens stored at the end of an interval, the budget is {budget}")
        return {"stored": stored}

    def steps(self, which: str, n: int) -> dict[str, Any]:
        """Time n decoded tokens; the stock cache loses as many at the end of every interval as came."""
        seconds: list[float] = []
        for i in range(1, n + 1):
            seconds.append(step(self.models[which], self.caches[which]))
            if which == "stock" and i % self.interval == 0:
                self.caches[which].crop(-self.interval)
        return {"seconds": seconds, "stored": int(self.caches[which].layers[0].keys.shape[2])}


def _press(duel: dict[str, Any], budget: int) -> Any:
    import kvpress  # pyright: ignore[reportMissingImports]

    names = {"knorm": "Knorm", "keydiff": "KeyDiff", "tova": "TOVA", "random": "Random", "streaming": "StreamingLLM"}
    if duel["policy"] == "snapkv":
        base = kvpress.SnapKVPress(window_size=dict(duel["options"])["window"])
    else:
        base = getattr(kvpress, f"{names[duel['policy']]}Press")()
    return kvpress.DecodingPress(
        base, compression_interval=duel["interval"], target_size=budget, hidden_states_buffer_size=16
    )


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
