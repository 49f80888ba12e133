"""What `remnant testbed eval` measures; the shipped model is as good as is claimed."""

from fractions import Fraction

import pytest
import torch

from remnant.errors import ConfigError
from remnant.testbed import final_scores, load
from remnant.testbed.drive import full_bytes
from remnant.testbed.evaluate import accuracy, budget_tokens, evaluate, measure
from remnant.testbed.examples import make_examples
from remnant.testbed.score import baselines
from remnant.testbed.tasks import Example


@pytest.fixture(scope="module")
def model():
    return load()[0]


@pytest.mark.parametrize(
    ("budget", "tokens"), [(128, 128), (Fraction(1, 10), 102), (0.1, 102), (1.0, 1024), (Fraction(1, 5000), 1)]
)
def test_budget(budget: float, tokens: int):
    assert budget_tokens(budget, 1024) == tokens


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, True])
def test_budget_out_of_range(budget: float):
    with pytest.raises(ConfigError, match="fraction"):
        budget_tokens(budget, 1024)


@pytest.mark.parametrize("policy", ["full", "snapkv", "streaming", "h2o", "adakv"])
def test_a_batch_scores_as_its_examples_do_alone(model, policy: str):
    examples = make_examples("recall", 128, 3, 11)
    together = measure(model, examples, "recall", policy, 48)
    alone = measure(model, examples, "recall", policy, 48, rows=1)
    assert torch.allclose(torch.tensor(together.nll), torch.tensor(alone.nll), atol=1e-4)
    assert together.hits == alone.hits
    assert together.bytes == alone.bytes


def test_full_cache_equals_one_forward_pass(model):
    (example,) = make_examples("passkey-late", 128, 1, 12)
    scored = measure(model, [example], "passkey-late", "full", 128)
    with torch.no_grad():
        logits = model(torch.tensor(example.tokens())[None]).logits[0].log_softmax(-1)
    want = [-float(logits[len(example.context) + i, token]) for i, token in example.answers]
    assert scored.nll[0] == pytest.approx(want, abs=1e-4)
    assert (
        scored.bytes
        == scored.bytes_full
        == [full_bytes(model, 128 if len(example.tokens()) == 128 else len(example.tokens()))]
    )


def test_a_question_counts_when_all_its_tokens_are_right():
    example = Example(context=None, probe=None, answers=((0, 1), (1, 2), (2, 3)), groups=(0, 0, 1))  # type: ignore[arg-type]

    class Scored:
        hits = ([True, False, True],)

    assert accuracy(Scored, [example]) == 0.5  # type: ignore[arg-type]


def test_result_has_every_field():
    found = evaluate("recall", "snapkv", Fraction(1, 2), length=128, n=2, seed=1)
    assert found["budget_tokens"] == 64
    assert found["bytes"] < found["bytes_full"]
    assert {"task", "policy", "options", "n", "seed", "accuracy", "peak_bytes", "tokens_per_second", "device"} <= set(
        found
    )
    again = evaluate("recall", "snapkv", Fraction(1, 2), length=128, n=2, seed=1)
    assert (again["accuracy"], again["bytes"]) == (found["accuracy"], found["bytes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "passkey"}, "passkey-early"),
        ({"policy": "no-such"}, "snapkv"),
        ({"policy": "snapkv", "budget": 8}, "at least"),
        ({"policy": "snapkv", "budget": 64, "kernel": 4}, "odd"),
        ({"task": "episodes", "policy": "epicache", "budget": 64, "length": 256, "kernel": 3}, "medoids"),
        ({"length": 32}, "64"),
        ({"task": "tree", "length": 256}, "512"),
    ],
)
def test_errors_are_typed(arguments: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        evaluate(**{"length": 128, "n": 1, **arguments})


@pytest.mark.slow
@pytest.mark.parametrize("task", ["recall", "passkey-early", "passkey-late"])
def test_full_cache_is_right(task: str):
    found = evaluate(task, "full", 1.0, length=1024, n=8 if task == "recall" else 34, seed=20)
    assert found["accuracy"] >= 0.97
    assert found["bytes"] == found["bytes_full"]


@pytest.mark.slow
def test_perplexity_is_below_the_baselines():
    found = evaluate("perplexity", "full", 1.0, length=1024, n=6, seed=21)["perplexity"]
    base = baselines(1024, 6, 21)
    assert found < 0.9 * base["trigram"] < base["unigram"]


def test_tree_needs_a_tenth_and_is_right():
    found = evaluate("tree", "tim", 1.0, length=1024, n=4, seed=22)
    assert found["kept_fraction"] <= 0.1
    assert found["accuracy"] >= 0.9
    assert found["options"] == {"buffer": 0}


def test_episodes_are_answered_from_bounded_caches():
    found = evaluate("episodes", "epicache", 0.25, length=512, n=2, seed=23)
    assert found["kept_fraction"] < 0.3
    assert found["accuracy"] >= 0.75
    assert found["bytes_all_episodes"] > found["bytes"]


@pytest.mark.slow
def test_final_scores_have_every_task(model):
    scores = final_scores(model, length=256, n=2)
    assert {"recall", "passkey-early", "passkey-late", "recurrence", "episodes", "perplexity", "baselines"} <= set(
        scores
    )
    assert scores["baselines"]["trigram"] < scores["baselines"]["unigram"]
