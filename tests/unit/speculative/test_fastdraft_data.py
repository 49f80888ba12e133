"""What FastDraft reads, and what the target's completions become."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remnant.errors import ConfigError
from remnant.speculative.fastdraft.data import IGNORE, FileRows, Prompt, read_data
from remnant.speculative.fastdraft.samples import complete, make_samples, rows_of, temper
from remnant.testbed import load


@pytest.fixture(scope="module")
def testbed() -> tuple[Any, Any]:
    return load()


def test_rows_are_slices_with_the_next_token_as_label():
    stream = np.arange(10, 60)
    ids, labels = FileRows(stream, 1).rows(np.random.default_rng(0), 4, 12)
    assert ids.shape == labels.shape == (4, 12)
    assert (ids[:, 0] == 1).all()
    assert (labels[:, :-1] == ids[:, 1:]).all()
    bare, _ = FileRows(stream, None).rows(np.random.default_rng(0), 4, 80)
    assert bare.min() >= 10  # longer than the stream: it begins anew


def test_files_become_rows_and_prompts(tmp_path: Path, testbed: tuple[Any, Any]):
    tokenizer = testbed[1]
    text = tmp_path / "a.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    rows = tmp_path / "b.jsonl"
    rows.write_text(json.dumps({"text": "def f(x): return x"}) + "\n")
    asked = tmp_path / "p.jsonl"
    lines = [{"prompt": f"Question {i}", "domain": "qa"} for i in range(12)]
    asked.write_text("\n".join(json.dumps(line) for line in [*lines, lines[0]]))
    data = read_data(tokenizer, [text], [rows], asked)
    assert len(data.prompts) + len(data.held_out) == 12  # the one that came twice counts once
    assert not {p.ids for p in data.prompts} & {p.ids for p in data.held_out}
    assert {p.domain for p in data.held_out} == {"qa"}
    assert data.prompts[0].ids[0] == tokenizer.bos_token_id
    assert data.more is not None
    cut = read_data(tokenizer, [text], wanted=20, held_out=5, seed=3)
    assert len(cut.held_out) == 5
    assert all(p.ids[0] == tokenizer.bos_token_id for p in cut.prompts)
    assert cut.prompts == read_data(tokenizer, [text], wanted=20, held_out=5, seed=3).prompts
    assert cut.sha256 != data.sha256


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", "", "empty corpus"),
        ("bad.jsonl", "no json", "one JSON object per line"),
        ("list.jsonl", "[1]", "one JSON object per line"),
        ("other.jsonl", '{"title": "x"}', "empty corpus"),
        ("half.jsonl", '{"text": "\\ud800"}', "surrogates not allowed"),
        ("deep.jsonl", "[" * 100_000, "one JSON object per line"),
        ("binary.txt", b"\x80\xff", "not UTF-8"),
        ("binary.jsonl", b"\x80\xff", "not UTF-8"),
    ],
)
def test_files_that_are_no_corpus(
    tmp_path: Path, testbed: tuple[Any, Any], name: str, content: str | bytes | None, match: str
):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=match):
        read_data(testbed[1], [file])


def test_lines_of_json_end_at_line_feeds_alone(tmp_path: Path, testbed: tuple[Any, Any]):
    line = json.dumps({"text": "one\u2028two\x85three"}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n" + line.encode())
    stream = read_data(testbed[1], [tmp_path / "a.jsonl"], wanted=4, held_out=2).corpus
    assert isinstance(stream, FileRows)
    assert testbed[1].decode(stream.stream.tolist()).count("two") == 2


def test_messages_that_no_template_takes(tmp_path: Path, testbed: tuple[Any, Any]):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "p.jsonl").write_text('{"messages": 5}\n{"messages": [{"role": "user", "content": "hi"}]}\n')
    tokenizer = copy.deepcopy(testbed[1])
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="chat template"):
        read_data(tokenizer, [tmp_path / "a.txt"], prompts=tmp_path / "p.jsonl")


def test_too_few_prompts(tmp_path: Path, testbed: tuple[Any, Any]):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "p.txt").write_text("same\nsame\n\n")
    with pytest.raises(ConfigError, match="at least 2"):
        read_data(testbed[1], [tmp_path / "a.txt"], prompts=tmp_path / "p.txt")


def test_only_completions_are_labels_and_each_row_counts_once():
    made = rows_of([[1, 5, 6], [1, 7], [1, 5, 6]], [[8, 9, 2], [4, 4, 4, 4], [8, 9, 2]], ends=[2], drop_tail=0.5)
    assert len(made) == 2
    assert made.tokens == 3 + 2  # the second was cut off: half of it is not learned
    ids, labels = made.rows(np.random.default_rng(0), 8, 16)
    rows = {tuple(row): [int(x) for x in label] for row, label in zip(ids.tolist(), labels, strict=True)}
    assert rows[(1, 5, 6, 8, 9, 2)] == [IGNORE, IGNORE, 8, 9, 2, IGNORE]
    assert rows[(1, 7, 4, 4, 4, 4)] == [IGNORE, 4, 4, IGNORE, IGNORE, IGNORE]


def test_a_long_row_loses_the_beginning_of_its_prompt():
    made = rows_of([list(range(10, 40))], [[50, 51, 2]], ends=[2], drop_tail=0.0)
    ids, labels = made.rows(np.random.default_rng(0), 1, 8)
    assert ids.tolist() == [[35, 36, 37, 38, 39, 50, 51, 2]]
    assert labels.tolist() == [[IGNORE] * 4 + [50, 51, 2, IGNORE]]


def test_nothing_but_empty_completions():
    with pytest.raises(ConfigError, match="empty"):
        rows_of([[1]], [[]], ends=[2], drop_tail=0.1)


def test_greedy_completions_of_unequal_prompts_are_generates_own(testbed: tuple[Any, Any]):
    model, tokenizer = testbed
    prompts = [tokenizer(text)["input_ids"] for text in ("Return a string", "The", "If the argument is given, the")]
    said = complete(model, prompts, torch.zeros(3), 12, torch.tensor([tokenizer.eos_token_id]), 2048, None)
    for prompt, answer in zip(prompts, said, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert whole[0, len(prompt) :].tolist() == answer


def test_temperatures_of_rows_and_padding():
    logits = torch.tensor([[1.0, 3.0, 2.0, 9.0]]).expand(3, 4)
    p = temper(logits, torch.tensor([0.0, 0.5, 1.0]), real=3)
    assert p[0].tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(p[1, :3], (logits[0, :3] / 0.5).softmax(-1))
    assert p[:, 3].sum() == 0


def test_completions_stop_at_an_end_and_are_not_drawn_again(tmp_path: Path, testbed: tuple[Any, Any]):
    model, tokenizer = testbed
    prompts = [Prompt(tuple(tokenizer(text)["input_ids"])) for text in ("A", "Return the", "See also", "If", "For")]
    common = tokenizer(" the", add_special_tokens=False)["input_ids"]
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return model(*args, **kwargs)

    class Counted:
        config = model.config
        parameters = model.parameters
        __call__ = staticmethod(counted)

    def make() -> Any:
        return make_samples(Counted(), prompts, tmp_path, 20, torch.tensor(common), 2048, seed=1, batch=2)

    one = make()
    drawn = len(calls)
    assert drawn > 0
    for row in range(len(one)):
        said = one.ids[row, one.start[row] : one.size[row]].tolist()
        assert common[0] not in said[:-1]
        cut = said[-1] != common[0]
        assert (one.stop[row] < one.size[row]) == cut
    two = make()
    assert len(calls) == drawn
    assert (two.ids == one.ids).all()
    (tmp_path / "batch-00001.safetensors").unlink()
    three = make()
    assert len(calls) > drawn
    assert (three.ids == one.ids).all()
