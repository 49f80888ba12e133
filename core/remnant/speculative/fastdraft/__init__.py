"""FastDraft: train a stand-alone drafter for any target, on text and then on what the target itself says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant.speculative.fastdraft.evaluate import evaluate, speculate
    from remnant.speculative.fastdraft.losses import distillation_loss
    from remnant.speculative.fastdraft.run import run
    from remnant.speculative.fastdraft.settings import Settings
    from remnant.speculative.fastdraft.shape import Shape, candidates

__all__ = ["Settings", "Shape", "candidates", "distillation_loss", "evaluate", "run", "speculate"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Settings": "remnant.speculative.fastdraft.settings",
        "Shape": "remnant.speculative.fastdraft.shape",
        "candidates": "remnant.speculative.fastdraft.shape",
        "distillation_loss": "remnant.speculative.fastdraft.losses",
        "evaluate": "remnant.speculative.fastdraft.evaluate",
        "speculate": "remnant.speculative.fastdraft.evaluate",
        "run": "remnant.speculative.fastdraft.run",
    },
    extra="hf",
)
