"""Tasks: seeds, exact answers, lengths."""

import numpy as np
import pytest

from remnant.errors import ConfigError
from remnant.kv.tasktree import PruneQueue, TaskTree
from remnant.testbed.examples import NAMES, held_out, make_examples
from remnant.testbed.tasks import TASKS, Example
from remnant.testbed.tokenizer import Alphabet, load_tokenizer
from remnant_hf._text import Detokenizer

A = Alphabet.of(load_tokenizer())


def facts(ids: np.ndarray) -> dict[int, int]:
    """The value that follows each `<fact> key`."""
    at = np.flatnonzero(ids[:-2] == A.fact)
    return {int(ids[i + 1]): int(ids[i + 2]) for i in at if ids[i + 2] in A.values}


@pytest.mark.parametrize("task", NAMES)
def test_seed_decides_everything(task: str):
    first, again, other = (make_examples(task, 512, 2, seed) for seed in (5, 5, 6))
    assert all(
        np.array_equal(a.tokens(), b.tokens()) and a.answers == b.answers for a, b in zip(first, again, strict=True)
    )
    assert not np.array_equal(first[0].tokens(), other[0].tokens())


@pytest.mark.parametrize("task", NAMES)
@pytest.mark.parametrize("length", [512, 1024])
def test_lengths_are_kept_and_equal(task: str, length: int):
    made = make_examples(task, length, 3, 1)
    assert len({(len(e.context), len(e.probe)) for e in made}) == 1
    assert length - 64 <= len(made[0].tokens()) <= length


@pytest.mark.parametrize("task", ["recall", "recurrence", "recurrence-rare", "episodes", "tree"])
def test_answers_are_the_values_of_the_facts_in_the_context(task: str):
    for example in make_examples(task, 512, 3, 2):
        known = facts(example.context)
        for i, token in example.answers:
            assert known[int(example.probe[i])] == token


@pytest.mark.parametrize("task", ["recall", "passkey-early", "passkey-late", "episodes", "tree"])
def test_the_probe_goes_on_with_the_answer(task: str):
    for example in make_examples(task, 512, 3, 3):
        assert all(int(example.probe[i + 1]) == token for i, token in example.answers)
        assert len(example.groups) == len(example.answers)


@pytest.mark.parametrize("task", ["recurrence", "recurrence-rare"])
def test_recurrence_never_states_a_value_again(task: str):
    for example in make_examples(task, 512, 3, 4):
        assert not np.isin(example.probe, [token for _, token in example.answers]).any()


def test_rare_recurrence_comes_back_after_a_gap_and_hitters_never():
    for example in make_examples("recurrence-rare", 1024, 3, 4):
        context, probe = example.context, example.probe
        asked = [int(probe[i]) for i, _ in example.answers]
        rounds = [set(asked[i : i + 3]) for i in range(0, len(asked), 3)]
        assert len(rounds) == 9
        assert all(one == rounds[0] for one in rounds)
        at = [i for i, _ in example.answers]
        assert all(b - a == 64 for a, b in zip(at[2::3], at[5::3], strict=False))
        used = context[:-1][(context[:-1] >= A.keys.start) & (context[:-1] < A.keys.stop) & (context[1:] == A.ok)]
        assert len(used) == 3 * 16
        assert not rounds[0] & set(used.tolist())
        assert rounds[0] | set(used.tolist()) == set(facts(context))


def asks(example: Example, part: np.ndarray) -> bool:
    return bool((part == A.ok).any())


def test_passkey_differs_in_where_the_question_stands():
    (early,), (late,) = (make_examples(f"passkey-{when}", 512, 1, 5) for when in ("early", "late"))
    assert asks(early, early.context)
    assert not asks(early, early.probe)
    assert asks(late, late.probe)
    assert not asks(late, late.context)
    assert np.array_equal(early.tokens(), late.tokens())


def test_segments_cover_the_conversation():
    (example,) = make_examples("episodes", 512, 1, 6)
    assert example.segments[0][0] == 1
    assert example.segments[-1][1] == len(example.context)
    assert all(a[1] == b[0] for a, b in zip(example.segments, example.segments[1:], strict=False))
    assert all(example.context[start] in A.topics for start, *_ in example.segments)


@pytest.mark.parametrize("length", [512, 2048])
def test_tree_is_json_and_its_conclusions_survive_pruning(length: int):
    (example,) = make_examples("tree", length, 1, 7)
    text, tree, queue = Detokenizer(load_tokenizer()), TaskTree(), PruneQueue(0)
    keep = np.ones(len(example.context), dtype=bool)
    for at, token in enumerate(example.context.tolist()):
        for event in tree.feed(text.piece(token), at):
            for start, end in queue.push(event):
                keep[start:end] = False
    assert not tree.broken
    left = facts(example.context[keep])
    assert len(left) == 4 * max(1, length // 1024)
    assert all(left[int(example.probe[i])] == token for i, token in example.answers)
    assert length < 1024 or keep.sum() + len(example.probe) <= length / 10


def test_filler_is_held_out_text():
    assert held_out().ids.min() >= A.eos
    assert len(held_out().ids) > 10_000


def test_unknown_task_and_too_short_tree():
    with pytest.raises(ConfigError, match="passkey-early"):
        make_examples("passkey", 512, 1, 0)
    with pytest.raises(ConfigError, match="512"):
        make_examples("tree", 128, 1, 0)
    assert make_examples("recurrence-rare", 128, 1, 0)[0].answers
    with pytest.raises(ConfigError, match="at least 128"):
        make_examples("recurrence-rare", 64, 1, 0)


def test_every_training_task_can_be_evaluated():
    assert set(TASKS) <= set(NAMES)
