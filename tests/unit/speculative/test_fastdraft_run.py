"""A run of FastDraft from end to end on a tiny target: resumed equals unbroken, and what comes out is a drafter."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from remnant.errors import ConfigError
from remnant.speculative.fastdraft.evaluate import evaluate, speculate
from remnant.speculative.fastdraft.run import run
from remnant.speculative.fastdraft.settings import Settings
from remnant.speculative.stats import block_efficiency
from remnant.testbed import load

VOCAB = 2048 + 16  # padded, as published models are


class StopNow(Exception):
    pass


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Llama with a padded vocabulary, and the testbed's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("target")
    torch.manual_seed(0)
    tokenizer = load()[1]
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    text = tmp_path_factory.mktemp("text") / "corpus.txt"
    text.write_text("".join(f"Line {i}: the value of item {i * 7 % 13} is {i % 5}.\n" for i in range(200)))
    return Settings(
        str(target), 0.3, corpus=(text,), more=(text,), pretrain_steps=4, more_steps=2, align_steps=4, samples=24,
        new=8, rows=4, length=32, pilots=2, pilot_steps=2, measured=3, seed=3, device="cpu", save_every=2, loss="ce+kl",
        top=8, on_policy=0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("whole") / "draft"
    return out, run(settings, out)


def without_times(card: dict[str, Any]) -> dict[str, Any]:
    """What must be equal in two runs of one plan: all but seconds, and the place."""
    kept = {k: v for k, v in card.items() if k not in ("seconds", "out", "search")}
    for name in ("before", "after"):
        kept[name] = {k: v for k, v in kept[name].items() if k != "seconds"}
    kept["stages"] = {k: {n: x for n, x in v.items() if n != "seconds"} for k, v in kept["stages"].items()}
    return kept


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again_has_the_same_result(
    settings: Settings, whole: tuple[Path, dict[str, Any]], tmp_path: Path
):
    out = tmp_path / "draft"
    # The shape depends on the clock; both runs shall have the one that the first found.
    (out / "run").mkdir(parents=True)
    (out / "run" / "plan.json").write_text((whole[0] / "run" / "plan.json").read_text())
    seen: list[str] = []
    for stage, step in (("pretrain", 3), ("more", 1), ("measuring", 2), ("the target answers", 1), ("align", 3)):

        def stop(done: int, total: int, text: str, stage: str = stage, step: int = step) -> None:
            seen.append(f"{text.split('  ')[0]} {done}")
            if text.startswith(stage) and done == step:
                raise StopNow

        with pytest.raises(StopNow):
            run(settings, out, resume=True, progress=stop)
    card = run(settings, out, resume=True, progress=lambda done, _, text: seen.append(f"{text.split('  ')[0]} {done}"))
    assert seen.count("pretrain 2") == 1  # saved after step 2, and not done again
    assert seen.count("pretrain 3") == 2
    assert without_times(card) == without_times(whole[1])
    assert card["draft_sha256"] == whole[1]["draft_sha256"]


def test_the_folder_is_a_drafter_of_transformers(settings: Settings, whole: tuple[Path, dict[str, Any]]):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, card = whole
    target: Any = AutoModelForCausalLM.from_pretrained(settings.target)
    draft: Any = AutoModelForCausalLM.from_pretrained(out)
    assert draft.config.vocab_size == VOCAB
    assert draft.config.architectures == ["LlamaForCausalLM"]
    assert sum(p.numel() for p in draft.parameters()) == card["parameters"] < 0.3 * card["target_parameters"]
    inputs = AutoTokenizer.from_pretrained(out)("Line 3: the", return_tensors="pt")
    alone = target.generate(**inputs, max_new_tokens=12, do_sample=False)
    drafted = target.generate(**inputs, max_new_tokens=12, do_sample=False, assistant_model=draft)
    assert torch.equal(alone, drafted)
    saved = json.loads((out / "fastdraft.json").read_text())
    assert saved["after"] == card["after"]
    text = (out / "README.md").read_text()
    assert f"{card['after']['greedy']['all']['acceptance']:.3f}" in text
    assert "draft_model" in text
    assert not [file for file in out.rglob("*") if file.suffix in (".pt", ".bin", ".pkl", ".tmp")]


def test_a_folder_with_a_run_is_not_overwritten_nor_continued_otherwise(
    settings: Settings, whole: tuple[Path, dict[str, Any]], target: Path
):
    with pytest.raises(ConfigError, match="--resume"):
        run(settings, whole[0])
    other = Settings(str(target), 0.3, corpus=settings.corpus, device="cpu", seed=4)
    with pytest.raises(ConfigError, match="seed"):
        run(other, whole[0], resume=True)


def test_a_drafter_can_be_taken_further(settings: Settings, whole: tuple[Path, dict[str, Any]], tmp_path: Path):
    further = Settings(
        settings.target, corpus=settings.corpus, start=whole[0], align_steps=2, samples=8, new=4, rows=2, length=32,
        measured=2, device="cpu",
    )  # fmt: skip
    card = run(further, tmp_path / "draft")
    assert card["shape"] == whole[1]["shape"]
    assert card["plan"]["pretrain_steps"] == 0
    assert card["draft_sha256"] != whole[1]["draft_sha256"]


def test_bad_input_is_refused_before_weights_are_loaded(
    settings: Settings, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*_: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("remnant.speculative.fastdraft.run.load_model", never)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": ""}\n')
    from transformers import AutoConfig

    foreign = AutoConfig.from_pretrained(target)
    foreign.vocab_size = 999
    foreign.save_pretrained(tmp_path / "foreign")
    corpus = settings.corpus
    cases = [
        (Settings(str(target), 10**9, corpus=corpus), "smaller than its target"),
        (Settings(str(target), 20_000, corpus=corpus), "at least"),
        (Settings(str(target), 0.3, corpus=(empty,)), "empty corpus"),
        (Settings(str(target), 0.3, corpus=(blank,)), "empty corpus"),
        (Settings(str(target), 0.3, corpus=(tmp_path / "none",)), "does not exist"),
        (Settings(str(target), corpus=corpus, start=tmp_path / "foreign"), "999 tokens for a target of 2064"),
        (Settings(str(target), corpus=corpus, start=target), "smaller than its target"),
        (Settings(str(tmp_path / "nothing"), corpus=corpus), "cannot be loaded"),
    ]
    for case, match in cases:
        with pytest.raises(ConfigError, match=match):
            run(case, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(AssertionError, match="were loaded"):
        run(settings, tmp_path / "out")


def test_a_tokenizer_larger_than_its_model_is_refused(settings: Settings, target: Path, tmp_path: Path):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.add_tokens([f"<new{i}>" for i in range(30)])
    tokenizer.save_pretrained(tmp_path / "m")
    AutoConfig.from_pretrained(target).save_pretrained(tmp_path / "m")
    with pytest.raises(ConfigError, match="2078 tokens for a model of 2064"):
        run(Settings(str(tmp_path / "m"), 0.3, corpus=settings.corpus), tmp_path / "out")


def test_drafting_equals_greedy_with_any_drafter_and_counts_what_it_did(target: Path):
    """The target as its own drafter is always right; another one changes counts and no token."""
    model, tokenizer = load()
    ends = torch.tensor([tokenizer.eos_token_id])
    ids = tokenizer("Return the value of", return_tensors="pt")["input_ids"]
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    wanted = plain[0, ids.shape[1] :].tolist()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    stranger = LlamaForCausalLM(
        LlamaConfig(vocab_size=2048, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1)
    ).eval()
    for draft in (model, stranger):
        for many in (1, 3, 5):
            got = speculate(model, draft, ids[0].tolist(), 20, many, 0.0, ends, 2048, torch.Generator())
            assert got == wanted
    from remnant.speculative.fastdraft.data import Prompt

    prompts = [Prompt(tuple(ids[0].tolist()), "text"), Prompt((1, 5, 6), "other")]
    found = evaluate(model, model, prompts, ends, 2048, 3, new=24)
    assert found["cost"] == 1.0
    for mode in ("greedy", "T=0.6"):
        assert found[mode]["all"]["acceptance"] == found[mode]["all"]["alpha"] == 1.0
        assert found[mode]["text"]["block_efficiency"] == 4.0
        assert found[mode]["all"]["mbsu"] == 1.0  # four tokens for three draft steps and one pass, all equally dear
    assert {"target_step", "draft_step", "verify", "overhead", "speedup"} == set(found["seconds"])
    low = evaluate(model, stranger, prompts, ends, 2048, 3, new=24)["T=0.6"]["all"]
    assert low["acceptance"] < 0.2
    assert low["block_efficiency"] == pytest.approx(1 + 3 * low["acceptance"])
    assert low["block_efficiency_predicted"] == pytest.approx(block_efficiency(low["alpha"], 3))


def test_drafts_are_forgotten_under_a_sliding_window():
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(2)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
             "num_key_value_heads": 1, "num_hidden_layers": 2, "sliding_window": 8}  # fmt: skip
    model, draft = (cast(Any, MistralForCausalLM)(MistralConfig(**sizes)).eval() for _ in range(2))
    ids = torch.arange(3, 27).unsqueeze(0)
    plain = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    got = speculate(model, draft, ids[0].tolist(), 20, 3, 0.0, nothing, 64, torch.Generator())
    assert got == plain[0, 24:].tolist()
