"""The drafter in the wheel: its size, that it drafts well, and that hosts load the folder made of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from remnant.speculative.fastdraft.evaluate import evaluate
from remnant.speculative.fastdraft.testbed_data import DOMAINS, held_out_prompts
from remnant.testbed import load, load_draft
from remnant.testbed.draft import DRAFT_FILE, draft_provenance, export_draft


def test_an_eighth_of_the_target_with_its_vocabulary_and_all_of_its_weights():
    target, draft = load()[0], load_draft()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (draft, target)]
    assert 8 * sizes[0] <= sizes[1]
    assert draft.config.vocab_size == target.config.vocab_size
    assert set(load_file(DRAFT_FILE)) == {name for name, _ in draft.named_parameters()}
    assert DRAFT_FILE.stat().st_size < 2**20
    record = draft_provenance()
    assert record["parameters"] == sizes[0]
    assert record["script"] == "remnant fastdraft"
    assert record["target_sha256"]


@pytest.mark.slow
def test_it_saves_passes_in_every_domain():
    """Fresh prompts of every kind, greedy: more than one and a half tokens per pass of the target."""
    target, tokenizer = load()
    prompts = [prompt for domain in DOMAINS for prompt in held_out_prompts(domain, 3, 96)]
    ends = torch.tensor([tokenizer.eos_token_id])
    found = evaluate(target, load_draft(), prompts, ends, len(tokenizer), 3, (0.0,), new=32)["greedy"]
    assert found["all"]["block_efficiency"] > 1.5
    assert all(found[domain]["block_efficiency"] > 1.2 for domain in DOMAINS)


def test_generate_with_it_equals_generate_without(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    target, tokenizer = load()
    folder = export_draft(tmp_path / "draft")
    draft: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("Return the number of", return_tensors="pt")
    plain = target.generate(**inputs, max_new_tokens=24, do_sample=False)
    passes: list[int] = []
    hook = target.register_forward_pre_hook(lambda *_: passes.append(1))
    drafted = target.generate(**inputs, max_new_tokens=24, do_sample=False, assistant_model=draft)
    hook.remove()
    assert torch.equal(plain, drafted)
    assert len(passes) < 24
    for name, tensor in load_draft().state_dict().items():
        assert torch.equal(draft.state_dict()[name], tensor), name


def test_precision_is_as_asked():
    assert next(load_draft(torch.bfloat16).parameters()).dtype == torch.bfloat16
    assert next(load_draft().parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match="flash"):
        load_draft(attn_implementation="flash")
