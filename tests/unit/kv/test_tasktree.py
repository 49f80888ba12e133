"""The task tree's parser and the queue of finished lists."""

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remnant.errors import ConfigError
from remnant.kv.tasktree import Event, PruneQueue, TaskTree

TREE = {
    "reasoning": [
        {
            "thought": 'a "quoted" [brace} ü→€',
            "tooluse": {"name": "add", "parameters": {"a": 1, "b": [2, {"subtasks": []}]}, "tool_result": "3]"},
            "subtasks": [
                {"thought": "x", "conclusion": "y"},
                {"thought": "deep", "subtasks": [{"thought": "z", "conclusion": "z"}], "conclusion": "\\]"},
            ],
            "conclusion": "done",
        }
    ],
    "answer": -1.5e3,
}


def read(text: str | bytes, cuts=None) -> tuple[TaskTree, list[Event]]:
    """One token per byte, or pieces between cuts."""
    data = text.encode() if isinstance(text, str) else text
    edges = [0, *sorted(cuts), len(data)] if cuts is not None else list(range(len(data) + 1))
    tree, events = TaskTree(), []
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        events += tree.feed(data[a:b], i)
    return tree, events


def test_events_of_a_tree_by_hand():
    text = '{"reasoning": [{"subtasks": [{"conclusion": "c"}], "conclusion": "d"}], "answer": 1}'
    tree, events = read(text)
    assert tree.done
    assert not tree.broken
    outer, inner = text.index("["), text.index("[", text.index("[") + 1)
    inner_end, outer_end = text.index("]"), text.rindex("]")
    assert [(e.kind, e.token, e.start, e.key, e.depth) for e in events] == [
        ("list_open", outer, outer, "reasoning", 0),
        ("list_open", inner, inner, "subtasks", 1),
        ("conclusion_end", text.index('"c"') + 2, text.index('"c"'), "conclusion", 2),
        ("list_close", inner_end, inner, "subtasks", 1),
        ("conclusion_end", text.index('"d"') + 2, text.index('"d"'), "conclusion", 1),
        ("list_close", outer_end, outer, "reasoning", 0),
    ]


def test_tool_parameters_come_with_name_and_text():
    _, events = read(json.dumps(TREE))
    (tool,) = [e for e in events if e.kind == "tool_params_end"]
    assert tool.name == "add"
    assert json.loads(tool.text) == TREE["reasoning"][0]["tooluse"]["parameters"]  # type: ignore[index]
    assert sum(e.kind == "list_open" for e in events) == 3  # the list inside the parameters is data


@pytest.mark.parametrize("parameters", ["3", '"a}"', "[1, 2]", "null", "{}"])
def test_tool_parameters_of_any_kind(parameters):
    _, events = read('{"reasoning": [{"tooluse": {"name": "t", "parameters": ' + parameters + "}}]}")
    (tool,) = [e for e in events if e.kind == "tool_params_end"]
    assert (tool.text, tool.name) == (parameters, "t")


def test_text_around_the_object_is_ignored():
    _, plain = read(json.dumps(TREE))
    tree, events = read(b"Sure: \xff\n" + json.dumps(TREE).encode() + b"``` [ } trailing")
    assert tree.done
    assert [e.kind for e in events] == [e.kind for e in plain]


@pytest.mark.parametrize(
    "text",
    [
        '{"reasoning": [}',
        '{"reasoning": [{]',
        '{"reasoning" [',
        '{"reasoning": [1 2]',
        '{"reasoning": [,]',
        '{"reasoning": [{"a": 1,}]',
        '{"reasoning": [tru]',
        '{"reasoning": [01]',
        "{reasoning: []}",
        '{"reasoning": [1,]}',
        '{"a" "reasoning": []}',
        '{"a": "b" []}',
    ],
)
def test_malformed_output_ends_the_events(text):
    tree, events = read(text)
    assert tree.broken
    assert not [e for e in events if e.kind == "list_close"]
    assert tree.feed('{"reasoning": []}', 10_000) == []


def test_the_right_name_for_the_wrong_value_is_data():
    _, events = read('{"reasoning": {"subtasks": []}, "x": [{"subtasks": []}], "answer": "[]"}')
    assert events == []


def test_rest_of_the_piece_is_told():
    tree = TaskTree()
    tree.feed('{"reasoning": [{"tooluse": {"name": "t", "parameters": {', 0)
    (event,) = tree.feed('"a": 1}, "to', 1)
    assert event.rest == b', "to'


tasks = st.recursive(
    st.fixed_dictionaries({"thought": st.text(max_size=6), "conclusion": st.text(max_size=6)}),
    lambda inner: st.fixed_dictionaries(
        {
            "thought": st.text(max_size=6),
            "tooluse": st.fixed_dictionaries(
                {"name": st.text(max_size=3), "parameters": st.dictionaries(st.text(max_size=3), st.integers())}
            ),
            "subtasks": st.lists(inner, max_size=3),
            "conclusion": st.text(max_size=6),
        }
    ),
    max_leaves=6,
)


def lists_in(node, key="subtasks") -> int:
    return sum(1 + sum(lists_in(t) for t in node[k]) for k in (key,) if k in node)


@settings(max_examples=60, deadline=None)
@given(reasoning=st.lists(tasks, max_size=3), seed=st.integers(0, 10**6), ascii_only=st.booleans())
def test_splits_do_not_matter(reasoning, seed, ascii_only):
    data = json.dumps({"reasoning": reasoning, "answer": None}, ensure_ascii=ascii_only, indent=seed % 3).encode()
    tree, whole = read(data)
    assert tree.done
    assert sum(e.kind == "list_close" for e in whole) == 1 + sum(lists_in(t) for t in reasoning)
    cuts = sorted(random.Random(seed).sample(range(1, len(data)), min(len(data) - 1, 12)))
    split, events = read(data, cuts)
    assert split.done
    token_of = [sum(c <= i for c in cuts) for i in range(len(data))]
    assert [(e.kind, e.token, e.start, e.text) for e in events] == [
        (e.kind, token_of[e.token], token_of[e.start], e.text) for e in whole
    ]
    for e in whole:
        if e.kind == "list_close":
            assert data[e.start : e.start + 1] == b"["
            json.loads(data[e.start : e.token + 1])


@settings(max_examples=60, deadline=None)
@given(reasoning=st.lists(tasks, min_size=1, max_size=3), buffer=st.integers(0, 2), seed=st.integers(0, 99))
def test_queue_drops_disjoint_spans_and_counts_positions(reasoning, buffer, seed):
    """A list of token positions that is pruned step by step is the truth for both kinds of coordinates."""
    data = json.dumps({"reasoning": reasoning}).encode()
    size = 1 + seed % 4
    tokens = [data[i : i + size] for i in range(0, len(data), size)]
    tree, keep, reuse = TaskTree(), PruneQueue(buffer), PruneQueue(buffer, reuse_positions=True)
    gone: set[int] = set()
    line: list[int] = []
    closed: list[tuple[int, int]] = []
    for i, piece in enumerate(tokens):
        line.append(i)
        for event in tree.feed(piece, i):
            if event.kind == "list_close" and event.key == "subtasks":
                closed.append((event.start + 1, event.token))
            for start, end in keep.push(event):
                span = set(range(start, end))
                assert span
                assert not span & gone
                gone |= span
            for start, end in reuse.push(event):
                assert start < end <= len(line)
                del line[start:end]
            for p in line:
                assert reuse.current(p) == line.index(p)
    assert set(line) == set(range(len(tokens))) - gone
    expected = set().union(*(range(a, b) for a, b in closed[: max(0, len(closed) - buffer)]), set())
    assert gone == expected


def test_queue_by_hand():
    def close(start, token):
        return Event("list_close", token, start, "subtasks")

    queue = PruneQueue(1)
    assert queue.push(close(5, 9)) == []
    assert queue.push(close(2, 12)) == [(6, 9)]  # the inner list; its brackets stay
    assert queue.push(close(20, 25)) == [(9, 12), (3, 6)]  # the outer one, around what is gone already
    moved = PruneQueue(1, reuse_positions=True)
    moved.push(close(5, 9))
    assert moved.push(close(2, 12)) == [(6, 9)]
    assert moved.push(close(20, 25)) == [(3, 9)]
    assert moved.current(20) == 11
    assert PruneQueue(0).push(Event("list_close", 9, 2, "reasoning")) == []
    assert PruneQueue(0).push(close(4, 4)) == PruneQueue(0).push(close(4, 5)) == []
    with pytest.raises(ConfigError):
        PruneQueue(-1)
