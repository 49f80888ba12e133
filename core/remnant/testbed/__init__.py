"""A small trained model and tasks with known answers: what the demo, the quality tests and the benchmarks run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remnant.lazy import attach

if TYPE_CHECKING:
    from remnant.testbed.draft import load_draft
    from remnant.testbed.examples import make_examples
    from remnant.testbed.model import load
    from remnant.testbed.score import final_scores
    from remnant.testbed.tasks import BENCHMARK_SEED_BASE, Example, Filler, make_example
    from remnant.testbed.tokenizer import Alphabet, load_tokenizer

__all__ = [
    "BENCHMARK_SEED_BASE",
    "Alphabet",
    "Example",
    "Filler",
    "final_scores",
    "load",
    "load_draft",
    "load_tokenizer",
    "make_example",
    "make_examples",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "BENCHMARK_SEED_BASE": "remnant.testbed.tasks",
        "Example": "remnant.testbed.tasks",
        "Filler": "remnant.testbed.tasks",
        "make_example": "remnant.testbed.tasks",
        "Alphabet": "remnant.testbed.tokenizer",
        "load_tokenizer": "remnant.testbed.tokenizer",
        "load": "remnant.testbed.model",
        "load_draft": "remnant.testbed.draft",
        "make_examples": "remnant.testbed.examples",
        "final_scores": "remnant.testbed.score",
    },
    extra="hf",
)
