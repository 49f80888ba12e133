"""What is measured, as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Benchmark:
    """A module of this folder with `main(arguments)`.

    Attributes:
        name: of the module, and of the command.
        help: one line.
        tests: must pass before anything is printed.
    """

    name: str
    help: str
    tests: tuple[str, ...] = ()


BENCHMARKS = (
    Benchmark("quality", "policies x tasks x budgets on the testbed", ("tests/unit/testbed/test_tasks.py",)),
    Benchmark("speed", "time and memory against the stock cache and kvpress", ("tests/plugins/test_cache.py",)),
    Benchmark("memory", "add to agent memory and recall from it, by size", ("tests/unit/index/test_word_search.py",)),
    Benchmark(
        "agent_peers", "agent memory against mem0, langmem and LangGraph's stores", ("tests/unit/memory/test_peers.py",)
    ),
    Benchmark("agents", "success of an agent that learns, by strategy", ("tests/unit/testbed/test_agents.py",)),
    Benchmark(
        "retrieval", "evidence recall on labelled questions, plain and widened", ("tests/unit/memory/test_widen.py",)
    ),
    Benchmark("routing", "evidence recall and cost of every mode of the router", ("tests/unit/routing",)),
    Benchmark(
        "agent_overhead",
        "what memory costs a LangChain agent per step",
        ("tests/plugins/langchain/test_middleware_prompt.py",),
    ),
    Benchmark(
        "drafting_lookup",
        "what lookup foretells, against ngram and prompt lookup; runs where vllm is",
        ("tests/unit/speculative/test_suffix.py",),
    ),
    Benchmark(
        "drafting_hf",
        "drafts in generate against prompt lookup and assisted generation",
        ("tests/plugins/test_speculate.py",),
    ),
    Benchmark(
        "drafting_vocab",
        "VocabTrim: acceptance and speed-up by k, the drafter's share of the time",
        ("tests/unit/speculative/test_vocab_measure.py",),
    ),
    Benchmark(
        "drafting_fastdraft",
        "FastDraft: distillation against more text, over three seeds",
        ("tests/unit/speculative/test_fastdraft_losses.py",),
    ),
    Benchmark(
        "drafting_rapid",
        "RAPID: answers and passes where the target alone is lost",
        ("tests/unit/speculative/test_rapid.py",),
    ),
    Benchmark("kernels", "every kernel against the roofline and torch", ("tests/kernels/test_dispatch.py",)),
    Benchmark(
        "drafting_plan",
        "predicted and counted bytes of drafting, and speed against budget",
        ("tests/unit/speculative/test_planner.py",),
    ),
    Benchmark("plot_quality", "draw results/quality.jsonl"),
    Benchmark("claims", "what should hold, and whether it does"),
)

LENGTH = 1024
SEEDS = 3
BUDGETS = (0.05, 0.10, 0.25, 0.50)
EXAMPLES = {
    "recall": 6,
    "passkey-early": 8,
    "passkey-late": 8,
    "recurrence": 4,
    "recurrence-rare": 4,
    "episodes": 6,
    "perplexity": 4,
    "tree": 6,
}
"""Examples per seed. An example of `recall` asks 16 questions, of `recurrence` about 60, of
`recurrence-rare` 27, of `episodes` 4."""
ALWAYS = ("full", "window", "streaming", "random")


@dataclass(frozen=True)
class Cell:
    """One measurement: all its seeds run as one batch.

    Attributes:
        task: of the testbed.
        policy: its name.
        budget: fraction of the length.
        options: of the policy, where they are not the defaults.
    """

    task: str
    policy: str
    budget: float
    options: dict[str, Any] = field(default_factory=dict[str, Any])


VARIANTS = (
    Cell("recall", "keydiff", 0.10, {"slack": 0}),
    Cell("recall", "trimkv", 0.10, {"gates": "testbed", "buffer": 1}),
    Cell("recall", "trimkv", 0.10, {"gates": "testbed", "buffer": 1, "recent": 4}),
    Cell("recall", "think", 1.0, {"evictor": "none", "ratio": 0.4}),
    Cell("passkey-early", "think", 1.0, {"evictor": "none", "ratio": 0.4}),
    Cell("recurrence-rare", "full", 1.0),
    *(Cell("recurrence-rare", p, b) for p in ("lazyeviction", "h2o", "tova", "window") for b in (0.10, 0.25, 0.50)),
    # What lazyeviction holds just before each of its decisions: its budget and 52 tokens.
    Cell("recurrence-rare", "h2o", 0.15),
    Cell("tree", "full", 1.0),
    Cell("tree", "tim", 1.0),
    Cell("tree", "streaming", 0.1),
    Cell("tree", "window", 0.1),
    Cell("tree", "random", 0.1),
    Cell("tree", "snapkv", 0.1),
)


def cells(policies: list[str], quick: bool = False) -> Iterator[Cell]:
    """The matrix, cheap and telling tasks first.

    A policy that never acts while decoding is left out of `recurrence`, whose context is not worth compressing, and
    `tim` out of all tasks that are no tree.
    """
    from remnant.kv import get_policy

    names = [*ALWAYS, *(p for p in policies if p not in (*ALWAYS, "tim"))]
    tasks = [task for task in EXAMPLES if task not in ("tree", "recurrence-rare")]
    budgets = (0.10,) if quick else BUDGETS
    for task in ("passkey-early",) if quick else tasks:
        for policy in ("full", "window", "snapkv") if quick else names:
            if task == "recurrence" and policy != "full" and not get_policy(policy).bounded:
                continue
            for budget in (1.0,) if policy == "full" else budgets:
                if task == "recurrence" and budget < 0.1:
                    continue  # less than one round of the premises: nothing to tell policies apart
                yield Cell(task, policy, budget)
    if not quick:
        yield from VARIANTS
