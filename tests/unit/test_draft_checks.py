"""What is checked of a drafter where vLLM's flags are read; no vLLM is needed for that."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from remnant.errors import ConfigError, UnsupportedPolicy
from remnant_vllm.draft_checks import check_drafting
from remnant_vllm.drafting import LookupOptions

VOCAB = 64


def engine(draft: Any = None, remnant: Any = None, model: Path | str = "target") -> SimpleNamespace:
    """The part of a configuration of vLLM that is looked at."""
    given = None if draft is None else SimpleNamespace(**{"num_speculative_tokens": 4, **draft})
    return SimpleNamespace(
        speculative_config=given,
        additional_config={} if remnant is None else {"remnant": remnant},
        model_config=SimpleNamespace(model=str(model), get_vocab_size=lambda: VOCAB),
    )


def lookup(**options: Any) -> dict[str, Any]:
    return {"method": "custom_class", "model": "remnant_vllm.LookupDrafter", **options}


@pytest.mark.parametrize("options", [None, {}, {"min_match": 3, "min_share": 0, "max_draft": 4, "max_tokens": 4096}])
def test_what_is_accepted(options: Any) -> None:
    check_drafting(engine())
    check_drafting(engine({"method": "ngram", "model": "ngram"}, {"policy": "snapkv", "budget": 64}))
    check_drafting(engine(lookup(), None if options is None else {"lookup": options}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "a mapping of min_match"),
        ({"min_mach": 3}, "did you mean 'min_match'"),
        ({"min_match": 0}, "min_match=0; accepted: an integer of at least 1"),
        ({"min_match": True}, "min_match=True"),
        ({"min_share": 1.5}, "a fraction from 0 to 1"),
        ({"min_share": "half"}, "a fraction from 0 to 1"),
        ({"max_draft": 5}, "at most 4, the engine's num_speculative_tokens"),
        ({"max_draft": 0}, "at least 1"),
        ({"max_tokens": 10}, "at least 1024"),
        ({"max_tokens": 1e6}, "an integer"),
        ({"shared_tokens": 12}, "at least 1024"),
    ],
)
def test_options_that_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_drafting(engine(lookup(), {"lookup": given}))


def test_a_longer_match_moves_what_depends_on_it() -> None:
    match = LookupOptions.parse({"min_match": 40}, 4).match()
    assert match.min_match == 40
    assert match.long_match > 40
    assert match.depth >= match.long_match


def test_drafters_and_combinations_that_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'remnant_vllm\.LookupDrafter'"):
        check_drafting(engine({"method": "custom_class", "model": "remnant_vllm.LookupDraftr"}))
    with pytest.raises(ConfigError, match="does not choose; add --speculative-config"):
        check_drafting(engine(None, {"lookup": {}}))
    with pytest.raises(ConfigError, match="does not choose"):
        check_drafting(engine({"method": "ngram", "model": "ngram"}, {"lookup": {}}))
    with pytest.raises(UnsupportedPolicy, match="num_speculative_tokens_per_batch_size"):
        check_drafting(engine(lookup(num_speculative_tokens_per_batch_size=[[1, 8, 4]])))
    with pytest.raises(ConfigError, match="a mapping with the model"):
        check_drafting(engine({"method": "custom_class", "model": "remnant_vllm.RapidDrafter"}))


def checkpoint(folder: Path, width: int, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    """A drafter's folder whose files say as much as the checks read."""
    from safetensors.torch import save_file

    folder.mkdir()
    has = {"lm_head.weight": torch.zeros(config.get("draft_vocab_size") or VOCAB, width), **(tensors or {})}
    save_file(has, str(folder / "model.safetensors"))
    said = {"architectures": ["LlamaForCausalLMEagle3"], "vocab_size": VOCAB, "hidden_size": width, **config}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def tables(keep: list[int]) -> dict[str, Any]:
    t2d = torch.zeros(VOCAB, dtype=torch.bool)
    t2d[keep] = True
    return {"d2t": torch.tensor(keep) - torch.arange(len(keep)), "t2d": t2d}


def test_maps_of_trimmed_drafters(tmp_path: Path) -> None:
    """A whole map passes; a missing one, one that is not a bijection, and one that contradicts itself do not."""
    keep, size = [1, 5, 6, 9], {"draft_vocab_size": 4}
    good = tables(keep)

    def check(name: str, given: dict[str, Any]) -> None:
        folder = checkpoint(tmp_path / name, 8, given, **size)
        check_drafting(engine({"method": "eagle3", "model": str(folder)}))

    check("good", good)
    with pytest.raises(ConfigError, match="without the table 'd2t'"):
        check("none", {})
    twice = {**good, "d2t": torch.tensor([1, 5, 5, 5]) - torch.arange(4)}
    with pytest.raises(ConfigError, match="ascend, each once"):
        check("twice", twice)
    with pytest.raises(ConfigError, match="but others"):
        check("others", {**good, "t2d": tables([1, 5, 6, 10])["t2d"]})
    with pytest.raises(ConfigError, match="t2d marks 0"):
        check("zeros", {"d2t": torch.zeros(4, dtype=torch.int64), "t2d": torch.zeros(VOCAB, dtype=torch.bool)})


def test_another_vocabulary(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "other", 8, vocab_size=VOCAB + 1, tensors={"lm_head.weight": torch.zeros(65, 8)})
    with pytest.raises(ConfigError, match="a vocabulary of 65 tokens, its target one of 64"):
        check_drafting(engine({"method": "eagle3", "model": str(folder)}))
    rapid = {"method": "custom_class", "model": "remnant_vllm.RapidDrafter"}
    with pytest.raises(ConfigError, match="a vocabulary of 65 tokens, its target one of 64"):
        check_drafting(engine(rapid, {"rapid": {"model": str(folder)}}))


def test_a_drafter_that_is_larger_than_its_target(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    small, large = checkpoint(tmp_path / "small", 8, **plain), checkpoint(tmp_path / "large", 16, **plain)
    check_drafting(engine({"method": "draft_model", "model": str(small)}, model=large))
    check_drafting(engine({"method": "draft_model", "model": str(large)}, model=large))
    with pytest.raises(ConfigError, match="drafting cannot pay"):
        check_drafting(engine({"method": "draft_model", "model": str(large)}, model=small))


def test_tokenizers_that_differ(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    plain: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    folders = [checkpoint(tmp_path / name, 8, **plain) for name in ("target", "drafter")]
    Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folders[0] / "tokenizer.json"))
    draft = {"method": "draft_model", "model": str(folders[1])}
    check_drafting(engine(draft, model=folders[0]))
    Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="b")).save(str(folders[1] / "tokenizer.json"))
    check_drafting(engine(draft, model=folders[0]))
    Tokenizer(WordLevel({"a": 1, "b": 0}, unk_token="a")).save(str(folders[1] / "tokenizer.json"))
    with pytest.raises(ConfigError, match="'a' is 1 for the drafter and 0 for the target"):
        check_drafting(engine(draft, model=folders[0]))
