"""`generate` with hooks: token ids reach the cache, and finished subtask lists leave it."""

import json

import pytest
import torch

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant.kv.tasktree import PruneQueue, TaskTree
from remnant.testbed.tokenizer import load_tokenizer
from remnant_hf import hooks
from remnant_hf._text import Detokenizer, encode
from remnant_hf.cache import RemnantCache

LEAF = {"thought": "t", "conclusion": "c"}


def compact(*tasks, answer=1) -> str:
    return json.dumps({"reasoning": tasks, "answer": answer}, separators=(",", ":"))


TREE = compact({"subtasks": [LEAF], "conclusion": "1"}, {"subtasks": [LEAF, LEAF], "conclusion": "2"})
NESTED = {"subtasks": [{"subtasks": [LEAF], "conclusion": "x"}], "conclusion": "y"}
OTHER = compact(NESTED, answer=12345).ljust(len(TREE))


def drops(text: str, offset: int, buffer: int) -> list[tuple[int, int, int]]:
    """(time, start, end): before the token at `time` is forwarded, `start <= p < end` goes."""
    tree, queue = TaskTree(), PruneQueue(buffer)
    out = []
    for i, c in enumerate(text):
        for event in tree.feed(c, offset + i):
            out += [(offset + i, a, b) for a, b in queue.push(event)]
    return out


def masked_logits(model, ids: torch.Tensor, gone: list[tuple[int, int, int]]) -> torch.Tensor:
    """Logits of one full pass in which queries from `time` on do not see the dropped positions."""
    n = ids.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    for time, start, end in gone:
        seen[time:, start:end] = False
    mask = torch.zeros(1, 1, n, n).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[0]


def written(model, cache, texts, prompt, letters, **kw):
    """Let the model write exactly these texts."""
    ids = torch.tensor([letters.encode(prompt)] * len(texts))
    n = ids.shape[1]

    def script(row, so_far):
        return [ord(texts[row][len(so_far) - n])]

    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=cache,
        max_new_tokens=len(texts[0]),
        do_sample=False,
        prefix_allowed_tokens_fn=script,
        return_dict_in_generate=True,
        output_logits=True,
        **kw,
    )


@pytest.mark.parametrize("buffer", [0, 1, 2])
def test_finished_lists_leave_and_logits_equal_the_masked_run(letters_model, letters, buffer):
    cache = RemnantCache(letters_model.config, "tim", budget=4096, buffer=buffer)
    h = hooks(cache, letters)
    out = written(letters_model, cache, [TREE], "go: ", letters, **h)
    assert h.trees[0].done
    gone = drops(TREE, 4, buffer)
    assert len(gone) == max(0, 2 - buffer)
    want = masked_logits(letters_model, out.sequences, gone)
    assert torch.cat(out.logits) == pytest.approx(want[3:-1], abs=1e-4)
    left = [p for p in range(4 + len(TREE) - 1) if not any(a <= p < b for _, a, b in gone)]
    assert cache.kept_positions(0)[0, 0].tolist() == left
    assert cache.tokens is not None
    assert cache.tokens[0].tolist() == out.sequences[0].tolist()


def test_rows_prune_at_their_own_time(letters_model, letters):
    cache = RemnantCache(letters_model.config, "tim", budget=4096, buffer=0)
    out = written(letters_model, cache, [TREE, OTHER], "go: ", letters, **hooks(cache, letters))
    for row, text in enumerate((TREE, OTHER)):
        want = masked_logits(letters_model, out.sequences[row : row + 1], drops(text, 4, 0))
        assert torch.stack([x[row] for x in out.logits]) == pytest.approx(want[3:-1], abs=1e-4)


def test_the_tree_may_begin_in_the_prompt(letters_model, letters):
    cache = RemnantCache(letters_model.config, "tim", budget=4096, buffer=0)
    h = hooks(cache, letters, start=4)
    written(letters_model, cache, [TREE[20:]], "go: " + TREE[:20], letters, **h)
    assert h.trees[0].done
    gone = drops(TREE, 4, 0)
    assert cache.stats().seen == 4 + len(TREE) - 1
    assert cache.kept_positions(0).shape[-1] == 4 + len(TREE) - 1 - sum(b - a for _, a, b in gone)


def test_malformed_output_prunes_nothing(letters_model, letters):
    cache = RemnantCache(letters_model.config, "tim", budget=4096, buffer=0)
    h = hooks(cache, letters)
    written(letters_model, cache, ['{"reasoning":]' + TREE], "go: ", letters, **h)
    assert h.trees[0].broken
    assert cache.kept_positions(0).shape[-1] == cache.get_seq_length()


def test_hooks_without_a_tree_only_tell_ids(letters_model, letters):
    cache = RemnantCache(letters_model.config, "window", budget=8)
    h = hooks(cache)
    out = written(letters_model, cache, ["abc"], "0123456789", letters, **h)
    assert list(h) == ["logits_processor", "stopping_criteria"]
    assert len(h) == 2
    assert cache.tokens is not None
    assert cache.tokens.tolist() == out.sequences.tolist()
    with pytest.raises(KeyError):
        h["tokenizer"]


def test_what_cannot_work_is_refused(letters_model, letters):
    config = letters_model.config
    with pytest.raises(ConfigError, match="tokenizer"):
        hooks(RemnantCache(config, "tim", budget=64))
    with pytest.raises(UnsupportedPolicy, match="reason"):
        hooks(RemnantCache(config, "tim", budget=64, reuse_positions=True), letters)
    cache = RemnantCache(config, "tim", budget=64)
    with pytest.raises(UnsupportedPolicy, match="beam"):
        letters_model.generate(
            torch.tensor([[65, 66, 67]]),
            past_key_values=cache,
            max_new_tokens=12,
            num_beams=4,
            do_sample=False,
            **hooks(cache, letters),
        )


@pytest.mark.parametrize("text", ["plain words", "ü→€ and 漢字 🙂 end", '{"a": "é"}'])
def test_pieces_join_to_the_text(text):
    tokenizer = load_tokenizer()
    ids = encode(tokenizer, text)
    stream = Detokenizer(tokenizer)
    pieces = [stream.piece(i) for i in ids]
    assert "".join(pieces) == text
    back = stream.copy()
    assert back.piece(ids[0]) == stream.piece(ids[0])
