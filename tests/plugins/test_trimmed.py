"""A trimmed draft model in transformers: loaded as written, and drafting without a change of the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from remnant.cli import main
from remnant.errors import ConfigError, RemnantError, UnsupportedPolicy
from remnant.speculative.vocab_map import VocabMap
from remnant_hf import RemnantCache, speculate
from remnant_hf.trimmed import TrimmedHead, load_trimmed, trim_model

K = 48


def letters(layers: int = 2, seed: int = 0, tied: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, pad_token_id=0, bos_token_id=None,
        eos_token_id=None, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def target() -> Any:
    return letters()


@pytest.fixture(scope="module")
def prompt() -> torch.Tensor:
    return torch.randint(1, 128, (1, 24), generator=torch.Generator().manual_seed(1))


def plain(model: Any, ids: torch.Tensor, **options: Any) -> list[int]:
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, **options)
    return out[0, ids.shape[1] :].tolist()


@pytest.fixture(scope="module")
def folder(target: Any, prompt: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target itself, with the head of the tokens that it writes after the prompt and of some others."""
    place = tmp_path_factory.mktemp("models")
    target.save_pretrained(place / "whole")
    save_file({"ids": torch.tensor(plain(target, prompt))}, place / "ids.safetensors")
    options = ["--tokens", str(place / "ids.safetensors"), "--k", str(K), "--out", str(place / "trimmed"), "--no-chart"]
    assert main(["trim-vocab", str(place / "whole"), *options, "--json"]) == 0
    return place / "trimmed"


def test_loaded_as_written(folder: Path, target: Any, prompt: torch.Tensor, tmp_path: Path):
    draft = load_trimmed(folder)
    keep = draft.lm_head.vmap.keep
    assert draft.lm_head.weight.shape == (K, 32)
    with torch.no_grad():
        ours, theirs = draft(prompt).logits, target(prompt).logits
    assert ours.shape == theirs.shape
    assert torch.equal(ours[..., keep], theirs[..., keep])
    assert torch.isinf(ours).sum(-1).unique().tolist() == [128 - K]
    draft.save_pretrained(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load_trimmed(tmp_path / "again")(prompt).logits, ours)
        assert load_trimmed(folder, dtype=torch.bfloat16)(prompt).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_trimmed_in_place(tied: bool, prompt: torch.Tensor, tmp_path: Path):
    model = letters(tied=tied)
    with torch.no_grad():
        before = model(prompt).logits
    vmap = VocabMap.from_ids([3, 50, 127], 128)
    assert trim_model(model, vmap) is model
    with torch.no_grad():
        after = model(prompt).logits
    assert torch.equal(after[..., vmap.keep], before[..., vmap.keep])
    assert model.get_input_embeddings().weight.shape == (128, 32)
    model.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(load_trimmed(tmp_path / "saved")(prompt).logits, after)


def test_capped_logits_stay_minus_infinity(prompt: torch.Tensor, tmp_path: Path):
    """Gemma 2 caps its logits, which makes a number that may be drawn of minus infinity."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, final_logit_softcapping=2.0, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model, vmap = Gemma2ForCausalLM(config).eval(), VocabMap.from_ids([3, 50, 127], 128)
    with torch.no_grad():
        wanted = vmap.scatter(model(prompt).logits[..., vmap.keep])
        trim_model(model, vmap).save_pretrained(tmp_path / "saved")
        for draft in (model, load_trimmed(tmp_path / "saved")):
            assert torch.equal(draft(prompt).logits, wanted)
            assert torch.equal(draft(prompt, return_dict=False)[0], wanted)
            loss, logits = draft(prompt, labels=torch.full_like(prompt, 50), return_dict=False)[:2]
            assert loss.isfinite()
            assert torch.equal(logits, wanted)


def test_greedy_output_is_the_targets(folder: Path, target: Any, prompt: torch.Tensor):
    draft, wanted = load_trimmed(folder), plain(target, prompt)
    drafts = speculate(draft, num_draft=3)
    assert plain(target, prompt, custom_generate=drafts) == wanted
    assert drafts.stats.acceptance > 0.9  # it is the target, and keeps all that the target writes here
    assert plain(target, prompt, assistant_model=draft) == wanted


def test_a_small_vocabulary_changes_nothing_either(target: Any, prompt: torch.Tensor):
    """Few tokens kept, and not those that are needed: drafts are refused, the output is the same."""
    wanted = plain(target, prompt)
    for keep in ([5], [1, 2, 3], sorted(set(wanted))[::2]):
        draft = trim_model(letters(), VocabMap.from_ids(keep, 128))
        drafts = speculate(draft, num_draft=3)
        assert plain(target, prompt, custom_generate=drafts) == wanted
        assert drafts.stats.proposed > 0


def test_over_a_compressed_cache(folder: Path, target: Any):
    ids = torch.randint(1, 128, (1, 200), generator=torch.Generator().manual_seed(2))
    make = lambda: RemnantCache(target.config, "snapkv", budget=64)  # noqa: E731
    wanted = plain(target, ids, past_key_values=make())
    drafts = speculate(load_trimmed(folder), num_draft=3)
    assert plain(target, ids, custom_generate=drafts, past_key_values=make()) == wanted
    assert drafts.stats.accepted > 0


def test_samples_have_the_targets_distribution(target: Any, prompt: torch.Tensor):
    """The first two sampled tokens, against their exact joint distribution: a drafter that keeps a third of them."""
    temperature, draws = 0.3, 1500
    with torch.no_grad():
        first = torch.softmax(target(prompt).logits[0, -1] / temperature, -1)
        tops = first.topk(3).indices
        rows = torch.cat([torch.cat([prompt[0], t[None]])[None] for t in tops])
        second = torch.softmax(target(rows).logits[:, -1] / temperature, -1)
    draft = trim_model(letters(layers=1, seed=4), VocabMap.from_ids(range(0, 128, 3), 128))
    drafts = speculate(draft, num_draft=2, generator=torch.Generator().manual_seed(0))
    ids = prompt.expand(250, -1)
    seen = torch.zeros(3, 128)
    for _ in range(draws // 250):
        out = target.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=True, temperature=temperature,
            top_k=0, custom_generate=drafts,
        )[:, -2:]  # fmt: skip
        for i, t in enumerate(tops):
            seen[i] += torch.bincount(out[out[:, 0] == t][:, 1], minlength=128)
    expected = first[tops].unsqueeze(1) * second * draws
    live = expected > 5
    statistic = float(((seen - expected)[live] ** 2 / expected[live]).sum())
    free = int(live.sum())
    assert free >= 5
    assert statistic < free + 5 * (2 * free) ** 0.5


def broken(folder: Path, place: Path, **change: Any) -> Path:
    weights = load_file(folder / "model.safetensors") | change
    place.mkdir()
    (place / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file({name: x for name, x in weights.items() if x is not None}, place / "model.safetensors")
    return place


def test_maps_are_checked_before_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "__init__", lambda *_: pytest.fail("a model was made"))
    with pytest.raises(ConfigError, match="without the table 'd2t'"):
        load_trimmed(broken(folder, tmp_path / "a", d2t=None))
    with pytest.raises(ConfigError, match="t2d marks 128"):
        load_trimmed(broken(folder, tmp_path / "b", t2d=torch.ones(128, dtype=torch.bool)))
    with pytest.raises(ConfigError, match="accepted: ids that ascend"):
        load_trimmed(broken(folder, tmp_path / "c", d2t=torch.arange(K).flip(0)))


def test_other_checkpoints_are_refused(folder: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="keeps all 128 tokens"):
        load_trimmed(folder.parent / "whole")
    eagle = broken(folder, tmp_path / "eagle")
    config = (eagle / "config.json").read_text()
    (eagle / "config.json").write_text(config.replace("RemnantTrimmedLlamaForCausalLM", "LlamaForCausalLMEagle3"))
    with pytest.raises(UnsupportedPolicy, match="an EAGLE-3 drafter"):
        load_trimmed(eagle)
    with pytest.raises(RemnantError, match="a head of 128 rows; accepted: 5"):
        trim_model(letters(), VocabMap.from_ids([1], 5))


def test_head_alone():
    vmap = VocabMap.from_ids([1, 3], 5)
    head = TrimmedHead(4, vmap, bias=True)
    out = head(torch.randn(2, 3, 4))
    assert out.shape == (2, 3, 5)
    assert torch.isfinite(out[0, 0]).tolist() == [False, True, False, True, False]
