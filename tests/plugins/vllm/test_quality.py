"""The trained testbed: what a policy remembers is the same through vLLM, question by question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remnant.kv import get_policy
from remnant.kv.pace import paced
from remnant.testbed import BENCHMARK_SEED_BASE, make_examples

pytestmark = pytest.mark.vllm
BLOCK = 32


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from remnant.testbed.model import export

    return export(tmp_path_factory.mktemp("testbed"))


@pytest.mark.parametrize(
    ("name", "options"),
    [("snapkv", {"window": 32}), ("keydiff", {}), ("trimkv", {"gates": "testbed", "share": "head"})],
)
def test_recall_at_a_tenth(name: str, options: Any, engine: Any, in_hf: Any, testbed: Path) -> None:
    """Every answer of every question; the prompt ends with the question, so `snapkv` can look for it."""
    asked: list[list[int]] = []
    right: list[int] = []
    for example in make_examples("recall", 1024, 4, BENCHMARK_SEED_BASE + 7):
        tokens, start = example.tokens().tolist(), len(example.context)
        for at, answer in example.answers[:4]:
            asked.append(tokens[:start] + tokens[start + at - 1 : start + at + 1])
            right.append(answer)
    policy = paced(get_policy(name, **options), "prompt", BLOCK)
    hf = [in_hf(testbed, prompt, 1, policy, 102) for prompt in asked]
    settings = {"policy": name, "budget": 102, "mode": "prompt", **options}
    running = engine(testbed, settings, blocks=120, max_model_len=1152, enable_prefix_caching=name != "trimkv")
    got = running.run(asked, 1)
    assert got == hf
    if name == "snapkv":
        known = [tokens == [answer] for tokens, answer in zip(got, right, strict=True)]
        assert sum(known) >= 15, "the question stands in the window, so its answer is kept"
