"""The reasoning loop: after every prune the model is where the pruned text alone would have brought it."""

import itertools
import json

import pytest
import torch

from remnant.errors import ShapeError, UnsupportedPolicy
from remnant_hf import reason
from remnant_hf.cache import RemnantCache

LEAF = {"thought": "t", "conclusion": "c"}
TASK = {"subtasks": [LEAF, {"subtasks": [LEAF], "conclusion": "d"}], "conclusion": "e"}
TREE = json.dumps({"reasoning": [TASK, TASK, TASK], "answer": "f"}, separators=(",", ":"))


class Scripted:
    """A model whose next token is always the script's, and whose other logits are its own."""

    def __init__(self, model, text: str) -> None:
        self.model, self.script = model, text
        self.config, self.generation_config, self.forward = model.config, model.generation_config, model.forward
        self.said = 0

    def __call__(self, **kw):
        out = self.model(**kw)
        out.logits[:, -1, ord(self.script[self.said])] = 1e9
        self.said = min(self.said + 1, len(self.script) - 1)
        return out


def run(model, letters, text, prompt="go: ", new=None, tools=None, observer=None, **options):
    cache = RemnantCache(model.config, "tim", budget=4096, **options)
    ids = torch.tensor([letters.encode(prompt)])
    out = reason(
        model, letters, ids, cache, new or len(text), tools, forced=letters.encode(text), block=16, observer=observer
    )
    return cache, out


@pytest.mark.parametrize("buffer", [0, 1, 2])
def test_logits_equal_a_run_on_the_pruned_text(letters_model, letters, buffer):
    steps: list[int] = []

    def check(context, logits):
        with torch.no_grad():
            want = letters_model(input_ids=torch.tensor([context])).logits[0, -1]
        assert logits == pytest.approx(want, abs=1e-4)
        steps.append(len(context))

    _, out = run(letters_model, letters, TREE, observer=check, buffer=buffer, reuse_positions=True)
    assert out.tree.done
    assert out.text == TREE
    assert out.pruned > 0
    assert len(out.context) == 4 + len(TREE) - out.pruned


@pytest.mark.parametrize("buffer", [0, 1])
def test_own_tokens_see_the_pruned_text_only(letters_model, letters, buffer):
    """Token by token, so that the suffix was in the cache and had to be encoded again."""
    widths: list[int] = []

    def check(context, logits):
        with torch.no_grad():
            want = letters_model(input_ids=torch.tensor([context])).logits[0, -1]
        same = logits < 1e8
        assert logits[same] == pytest.approx(want[same], abs=1e-4)
        widths.append(len(context))

    cache = RemnantCache(letters_model.config, "tim", budget=4096, buffer=buffer, reuse_positions=True)
    ids = torch.tensor([letters.encode("go: ")])
    out = reason(Scripted(letters_model, TREE), letters, ids, cache, len(TREE), observer=check)
    assert out.text == TREE
    assert out.tree.done
    assert any(b < a for a, b in itertools.pairwise(widths))
    assert out.pruned > 0
    assert out.peak == max(widths)
    assert cache.get_seq_length() in (len(out.context), len(out.context) - 1)


def test_an_endless_buffer_is_the_identity(letters_model, letters):
    _, out = run(letters_model, letters, TREE, buffer=99, reuse_positions=True)
    assert out.pruned == 0
    assert out.context == letters.encode("go: " + TREE)


def test_without_reuse_the_gap_stays(letters_model, letters):
    cache, out = run(letters_model, letters, TREE, buffer=0)
    assert out.pruned > 0
    assert cache.kept_positions(0).shape[-1] < 4 + len(TREE) - out.pruned + 1
    assert len(out.context) == 4 + len(TREE)


def test_both_ways_drop_the_same_tokens(letters_model, letters):
    _, moved = run(letters_model, letters, TREE, buffer=1, reuse_positions=True)
    cache, stayed = run(letters_model, letters, TREE, buffer=1)
    assert moved.pruned == stayed.pruned
    everything = letters.encode("go: " + TREE)
    left = [everything[p] for p in cache.kept_positions(0)[0, 0].tolist()]
    assert moved.context[: len(left)] == left


def test_tools_are_called_and_their_results_written(letters_model, letters):
    begin = '{"reasoning":[{"tooluse":{"name":"add","parameters":{"a":1,"b":2}'
    _, out = run(
        letters_model, letters, begin, new=len(begin) + 40, tools={"add": lambda a, b: a + b}, reuse_positions=True
    )
    assert out.calls == [("add", {"a": 1, "b": 2}, 3)]
    assert out.text.startswith(begin + ', "tool_result": 3')


@pytest.mark.parametrize("name", ["missing", "broken"])
def test_a_failing_tool_is_told_to_the_model(letters_model, letters, name):
    def broken():
        raise ValueError("no")

    begin = '{"reasoning":[{"tooluse":{"name":"' + name + '","parameters":{}'
    _, out = run(letters_model, letters, begin, new=len(begin) + 99, tools={"broken": broken}, reuse_positions=True)
    assert "error" in out.calls[0][2]
    told = out.text[len(begin) :]
    assert told.startswith(', "tool_result": ' + json.dumps(out.calls[0][2]))


def test_a_token_that_runs_past_the_parameters_is_replaced(letters_model, letters):
    """A number ends only with the byte behind it, which the model then has not said."""
    begin = '{"reasoning":[{"tooluse":{"name":"neg","parameters":4'
    _, out = run(letters_model, letters, begin + "2}", new=len(begin) + 30, tools={"neg": lambda x: -x})
    assert out.calls == [("neg", 42, -42)]
    assert out.text.startswith(begin + '2, "tool_result": -42')


def test_refusals(letters_model, letters):
    config = letters_model.config
    ids = torch.tensor([[65, 66]])
    with pytest.raises(UnsupportedPolicy, match="events"):
        reason(letters_model, letters, ids, RemnantCache(config, "window", budget=16))
    with pytest.raises(ShapeError):
        reason(letters_model, letters, ids.repeat(2, 1), RemnantCache(config, "tim", budget=16))
    cache, _ = run(letters_model, letters, "x", reuse_positions=True)
    with pytest.raises(ShapeError, match="empty"):
        reason(letters_model, letters, ids, cache)
