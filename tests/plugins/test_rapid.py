"""RAPID in `generate`: lossless without a tilt; with one, right where a target lost in its context is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remnant.errors import ConfigError
from remnant.speculative import Audit, RagContext, Tilt
from remnant_hf import RemnantCache, rapid, speculate

ANSWER = 3


def tail(ids: Any) -> Any:
    """The last third of a prompt."""
    return ids[len(ids) - len(ids) // 3 :]


# Any model.


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen3"])
def test_greedy_output_stays_that_of_the_target(lab: Any, arch: str) -> None:
    model, ids = lab.model(arch), lab.ids(60)
    drafter = rapid(lab.model("llama", seed=1), tail, confidence=0.0)
    wanted = lab.go(model, ids, lab.full(model), new=12)
    for tilt in (None, Tilt("target")):
        drafts = speculate(drafter, num_draft=3, tilt=tilt)
        assert torch.equal(lab.go(model, ids, lab.full(model), new=12, custom_generate=drafts), wanted)
        assert drafts.stats.proposed > 0


def test_rows_of_a_batch_have_prompts_of_their_own(lab: Any) -> None:
    model = lab.model("llama")
    rows, ids, mask = lab.padded((50, 33, 41))
    drafter = rapid(model, tail, confidence=0.0)
    drafts = speculate(drafter, num_draft=3)
    got = lab.go(model, ids, lab.full(model), new=10, attention_mask=mask, custom_generate=drafts)
    for row, one in zip(got, rows, strict=True):
        assert torch.equal(row, lab.go(model, one, lab.full(model), new=10)[0])
    assert [p.ids.tolist() for p in drafter.prompts] == [tail(one[0]).tolist() for one in rows]


def test_over_a_compressed_cache_it_is_that_caches_own_output(lab: Any) -> None:
    model, ids = lab.model("llama"), lab.ids(80)
    wanted = lab.go(model, ids, lab.cache(model), new=12)
    drafts = speculate(rapid(lab.model("llama", seed=1), tail, confidence=0.0), num_draft=3)
    assert torch.equal(lab.go(model, ids, lab.cache(model), new=12, custom_generate=drafts), wanted)


def test_a_tilt_follows_the_mixture_token_by_token(lab: Any) -> None:
    """Against plain passes over both prompts."""
    model, small, ids = lab.model("llama"), lab.model("llama", seed=1), lab.ids(48)
    tilt = Tilt("geometric", lam=0.6, audit=Audit())
    drafts = speculate(rapid(small, tail, tilt, confidence=0.0), num_draft=3, tilt=tilt)
    got = lab.go(model, ids, lab.full(model), new=9, custom_generate=drafts)
    text = ids
    with torch.no_grad():
        for _ in range(9):
            short = torch.cat([tail(ids[0])[None], text[:, 48:]], 1)
            mixed = tilt(model(text).logits[:, -1], small(short).logits[:, -1])
            text = torch.cat([text, mixed.argmax(-1, keepdim=True)], 1)
    assert torch.equal(got, text[:, 48:])
    assert tilt.audit is not None
    assert tilt.audit.of(0, got[0]) == pytest.approx([0.6] * 9)


def test_a_tilt_needs_a_drafter_that_keeps_its_logits(lab: Any) -> None:
    model, tilt = lab.model("llama"), Tilt("exact", eta=3.0)
    with pytest.raises(ConfigError, match="without logits"):
        lab.go(model, lab.ids(40), lab.full(model), custom_generate=speculate(rapid(model, tail), tilt=tilt))


# The testbed.


class Lost:
    """Passkeys in three times the context that the model was trained on, and the question at the end."""

    def __init__(self, n: int, length: int) -> None:
        from remnant.testbed import load, make_examples

        self.model, self.tokenizer = load()
        self.prompts, self.answers = list[Any](), list[list[int]]()
        for example in make_examples("passkey-late", length, n, seed=11):
            first = example.answers[0][0]
            stream = [*example.context.tolist(), *example.probe[: first + 1].tolist()]
            self.prompts.append(torch.tensor([stream]))
            self.answers.append([token for _, token in example.answers])
        self.context = RagContext(self.tokenizer, tail=12, chunk=64, k=4)

    def right(self, **options: Any) -> float:
        """Fraction of answers that are right throughout."""
        hits = 0
        for prompt, answer in zip(self.prompts, self.answers, strict=True):
            cache = options.get("cache")
            given: dict[str, Any] = {"past_key_values": cache()} if cache else {}
            if "custom_generate" in options:
                given["custom_generate"] = options["custom_generate"]
            out: Any = self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=ANSWER, do_sample=False, **given
            )
            hits += out[0, prompt.shape[1] :].tolist() == answer
        return hits / len(self.prompts)


@pytest.fixture(scope="module")
def lost() -> Lost:
    return Lost(4, 3072)


@pytest.mark.slow
def test_what_the_drafter_read_answers_where_the_target_is_lost(lost: Lost) -> None:
    """The claim: accuracy above the target's own, in fewer passes than tokens."""
    alone = lost.right()
    assert alone <= 0.5
    passes = tokens = 0
    for tilt in (Tilt("exact", eta=20.0), Tilt("geometric", lam=0.5)):
        drafts = speculate(rapid(lost.model, lost.context, tilt), num_draft=4, tilt=tilt)
        assert lost.right(custom_generate=drafts) >= alone + 0.3
        passes, tokens = passes + drafts.stats.passes, tokens + drafts.stats.emitted
    assert passes < tokens


@pytest.mark.slow
def test_it_answers_over_a_cache_that_dropped_the_answer() -> None:
    """The first and the newest 128 tokens are all that the target has."""
    few = Lost(3, 1024)

    def bounded() -> Any:
        return RemnantCache(few.model.config, "streaming", budget=128)

    alone = few.right(cache=bounded)
    tilt = Tilt("geometric", lam=0.8)
    drafts = speculate(rapid(few.model, few.context, tilt), num_draft=4, tilt=tilt)
    assert few.right(cache=bounded, custom_generate=drafts) > alone
