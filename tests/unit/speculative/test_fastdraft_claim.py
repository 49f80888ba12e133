"""The claim of FastDraft: after text, the target's own answers teach a drafter more than further text does.

Greedy drafts, since their acceptance has no noise; `benchmarks/drafting_fastdraft.py` measures sampling, too.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remnant.speculative.fastdraft.data import FileRows
from remnant.speculative.fastdraft.evaluate import evaluate, expected_acceptance
from remnant.speculative.fastdraft.loop import Stage, train_stage
from remnant.speculative.fastdraft.samples import make_samples
from remnant.speculative.fastdraft.shape import Shape, borrow_embedding, draft_config, new_draft
from remnant.speculative.fastdraft.testbed_data import read_testbed
from remnant.testbed import load
from remnant.testbed.examples import stream
from remnant.testbed.text import load_corpus


@pytest.mark.slow
def test_the_targets_text_raises_acceptance_above_more_of_the_corpus(tmp_path: Path):
    model, tokenizer = load()
    ends, real = torch.tensor([tokenizer.eos_token_id]), len(tokenizer)
    data = read_testbed(320, 8, seed=1, length=64)  # prompts are text and tasks; the corpus is text, as in the paper
    corpus = FileRows(stream(load_corpus().train), tokenizer.bos_token_id)
    learned = make_samples(model, data.prompts, tmp_path / "learned", 32, ends, real, seed=1, batch=160)
    held_out = make_samples(model, data.held_out, tmp_path / "held_out", 32, ends, real, seed=2, temperatures=(0.0,))

    def trained(draft: Any, rows: Any, steps: int, lr: float, seed: int) -> Any:
        draft = copy.deepcopy(draft)
        train_stage(draft, rows, Stage("test", steps, 16, 64, lr, seed))
        return draft

    gains: list[float] = []
    arms: list[Any] = []
    for seed in range(3):
        fresh = new_draft(draft_config(model.config, Shape(48, 1, 2, 1, 32, 160)), seed)
        borrow_embedding(fresh, model, seed)
        first = trained(fresh, corpus, 40, 6e-3, seed)
        arms = [trained(first, rows, 80, 3e-3, 10 + seed) for rows in (corpus, learned)]
        more, target = (
            expected_acceptance(model, draft, held_out, 0.0, real, np.random.default_rng(0), 32, 96) for draft in arms
        )
        gains.append(target - more)
    assert min(gains) >= 0.03, gains
    # The same on drafts that the target really verified; and the acceptance of single tokens predicts that of blocks.
    prompts = data.held_out[::2]
    one, two = (evaluate(model, draft, prompts, ends, real, 3, (0.0,), new=32)["greedy"]["all"] for draft in arms)
    assert two["acceptance"] >= one["acceptance"] + 0.03
    for found in (one, two):
        assert found["block_efficiency_predicted"] == pytest.approx(found["block_efficiency"], rel=0.1)
