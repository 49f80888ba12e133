"""RAPID in vLLM: a second model that reads passages drafts, and no token changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from remnant.errors import ConfigError, UnsupportedPolicy

pytestmark = pytest.mark.vllm
NEW, DRAFT = 24, 4


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random model with the same vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    path = tmp_path_factory.mktemp("drafter")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def testbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from remnant.testbed.model import export

    return export(tmp_path_factory.mktemp("testbed"))


def spec(num: int = DRAFT) -> dict[str, Any]:
    return {"method": "custom_class", "model": "remnant_vllm.RapidDrafter", "num_speculative_tokens": num}


def options(model: Path, **more: Any) -> dict[str, Any]:
    return {"remnant": {"rapid": {"model": str(model), "tail": 16, "chunk": 16, "k": 4, "confidence": 0.0, **more}}}


def watched(running: Any) -> list[Any]:
    """The short prompts that the drafter will make, as they are made."""
    drafter, made = running.runner.drafter, []
    shorten = drafter._shorten

    def watching(ids: Any) -> Any:
        made.append(shorten(ids))
        return made[-1]

    drafter._shorten = watching
    return made


def counts(running: Any) -> tuple[int, int]:
    """Drafted and accepted tokens so far."""
    got = {metric.name: getattr(metric, "value", 0) for metric in running.llm.get_metrics()}
    return got["vllm:spec_decode_num_draft_tokens"], got["vllm:spec_decode_num_accepted_tokens"]


# The second model by itself.


def test_rows_of_any_length_share_a_pass(checkpoints: Callable[[str], Path]) -> None:
    """Against plain passes without a cache: feeding, taking back, giving a row to another text."""
    import torch
    from transformers import AutoModelForCausalLM

    from remnant_vllm.second import SecondModel

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoints("llama"), dtype=torch.float32).eval()
    second = SecondModel(model, rows=3, context=64)
    assert second.nbytes == 2 * 2 * 3 * 2 * 65 * 32 * 4
    source = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, 512, (n,), generator=source).tolist() for n in (40, 7, 64)]

    def plain(text: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([text])).logits[0, -1]

    a, b = second.take(), second.take()
    assert a is not None
    assert b is not None
    second.read(a, texts[0][:38])
    got = second.feed([b, a], [texts[1][:5], texts[0][38:]])
    torch.testing.assert_close(got, torch.stack([plain(texts[1][:5]), plain(texts[0])]), atol=1e-4, rtol=1e-4)
    second.crop(a, 10)
    got = second.feed([a, b], [[3, 4, 5], [9]])
    wanted = [plain([*texts[0][:10], 3, 4, 5]), plain([*texts[1][:5], 9])]
    torch.testing.assert_close(got, torch.stack(wanted), atol=1e-4, rtol=1e-4)
    second.give(a)
    c, d = second.take(), second.take()
    assert {c, d} == {0, 1, 2} - {b}
    assert second.take() is None
    second.read(a, texts[2][:-1])
    got = second.feed([a], [texts[2][-1:]])
    torch.testing.assert_close(got[0], plain(texts[2]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="a text of 65 tokens"):
        second.feed([a], [[1]])


def test_a_model_without_plain_attention_is_refused() -> None:
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    from remnant_vllm.second import SecondModel

    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    torch.manual_seed(0)
    with pytest.raises(UnsupportedPolicy, match="MambaForCausalLM does not run"):
        SecondModel(MambaForCausalLM(config).eval(), rows=2, context=16)


# In the engine.


def test_no_token_changes(
    engine: Any, checkpoints: Any, small: Path, prompts: Callable[..., list[list[int]]], in_hf: Callable[..., list[int]]
) -> None:
    """Whatever the drafter guesses: a random one is nearly always wrong."""
    model, given = checkpoints("llama"), prompts(300, 217, 90, 20)
    running = engine(model, speculative_config=spec(), additional_config=options(small))
    assert running.run(given, NEW) == [in_hf(model, prompt, NEW) for prompt in given]
    drafted, accepted = counts(running)
    assert drafted > 3 * NEW
    assert accepted < drafted / 4


def test_what_stands_in_the_passages_is_accepted(engine: Any, testbed: Path) -> None:
    """The target as its own drafter, on passages of 256 tokens instead of a thousand: most of it is right."""
    from remnant.testbed import make_examples

    examples = make_examples("passkey-early", 1024 - NEW - 8, 4, 7)
    given = [[*e.context.tolist(), *e.probe[:2].tolist()] for e in examples]
    plain = engine(testbed, max_num_batched_tokens=4096).run(given, NEW)
    shorter = options(testbed, chunk=64, k=4, tail=40)
    running = engine(
        testbed, blocks=140, speculative_config=spec(), additional_config=shorter, max_num_batched_tokens=4096
    )
    assert running.run(given, NEW) == plain
    drafted, accepted = counts(running)
    assert accepted > drafted / 5
    assert running.steps < NEW
    drafter = running.runner.drafter
    text = next(iter(drafter.histories)).index
    assert 256 < len(text.tokens) < 400, "it read the passages and the answer, not the prompt"


def test_passages_are_found_in_the_text(engine: Any, testbed: Path, in_hf: Callable[..., list[int]]) -> None:
    """With a tokenizer, by words, for the question behind the last marker."""
    from remnant.testbed import make_examples

    (example,) = make_examples("passkey-late", 700, 1, 7)
    first = example.answers[0][0]
    given = [[*example.context.tolist(), *example.probe[: first + 1].tolist()]]
    answer = [token for _, token in example.answers]
    shorter = options(testbed, chunk=32, k=4, marker="<ok>")
    running = engine(testbed, skip_tokenizer_init=False, speculative_config=spec(), additional_config=shorter)
    read = watched(running)
    assert running.run(given, 4) == [in_hf(testbed, given[0], 4)]
    assert set(answer) <= set(read[0].ids.tolist()), "the passage with the key was found"
    assert len(read[0].ids) < 250
    assert counts(running)[0] > 0


def test_rows_that_leave_and_return(
    engine: Any, checkpoints: Any, prompts: Callable[..., list[list[int]]], in_hf: Callable[..., list[int]]
) -> None:
    """A pool for less than two requests: they are preempted, come back, and find their caches."""
    model, given = checkpoints("llama"), prompts(300, 290, 310)
    rapid = options(model, requests=3)
    running = engine(model, blocks=22, speculative_config=spec(2), additional_config=rapid, max_model_len=512)
    assert running.run(given, 80) == [in_hf(model, prompt, 80) for prompt in given]
    assert sum(running.preemptions.values()) > 0
    assert running.runner.drafter.histories.built == 3


def test_more_requests_than_caches_are_served_without_drafts(
    engine: Any, checkpoints: Any, prompts: Callable[..., list[list[int]]], in_hf: Callable[..., list[int]]
) -> None:
    model, given = checkpoints("llama"), prompts(100, 110, 120, 130)
    running = engine(model, speculative_config=spec(), additional_config=options(model, requests=2))
    wanted = [in_hf(model, prompt, NEW) for prompt in given]
    assert running.run(given, NEW) == wanted
    assert len(running.runner.drafter.histories) == 2
    assert running.run(given[::-1], NEW) == wanted[::-1], "finished texts give their caches back"


def test_a_short_prompt_is_not_drafted_for(
    engine: Any, checkpoints: Any, prompts: Callable[..., list[list[int]]], in_hf: Callable[..., list[int]]
) -> None:
    """Passages that would not be shorter than the prompt: the second model is of no use."""
    model, given = checkpoints("llama"), prompts(30, 12)
    running = engine(model, speculative_config=spec(), additional_config=options(model))
    assert running.run(given, NEW) == [in_hf(model, prompt, NEW) for prompt in given]
    assert counts(running)[0] == 0


def test_over_a_compressed_cache_the_tokens_are_those_of_the_compressed_cache(
    engine: Any, checkpoints: Any, prompts: Callable[..., list[list[int]]]
) -> None:
    """The drafter has caches of its own, so that eviction does not concern it."""
    model, given = checkpoints("llama"), prompts(500, 417)
    eviction = {"policy": "snapkv", "budget": 128}
    wanted = engine(model, eviction).run(given, NEW)
    both = {"remnant": {**eviction, **options(model)["remnant"]}}
    running = engine(model, attention_backend="CUSTOM", additional_config=both, speculative_config=spec())
    assert running.run(given, NEW) == wanted
    assert counts(running)[0] > NEW


# What is refused, before a weight is read.


def config(rapid: Any, vocab: int = 512) -> Any:
    return SimpleNamespace(
        additional_config={"remnant": {"rapid": rapid}},
        speculative_config=SimpleNamespace(num_speculative_tokens=2),
        model_config=SimpleNamespace(max_model_len=256, skip_tokenizer_init=True, get_vocab_size=lambda: vocab),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
    )


@pytest.mark.parametrize(
    ("rapid", "said"),
    [
        (None, "is nothing; accepted: a mapping with the model"),
        ([], "is list"),
        ({}, "model=None"),
        ({"model": "x", "tial": 3}, "did you mean 'tail'"),
        ({"model": "x", "chunk": 0}, "chunk=0; accepted: an integer of at least 1"),
        ({"model": "x", "tail": True}, "tail=True"),
        ({"model": "x", "floor": 2}, "floor=2; accepted: 0 to 1"),
        ({"model": "x", "index": "exact"}, "without an embedder"),
    ],
)
def test_options_are_checked(rapid: Any, said: str) -> None:
    from remnant_vllm import RapidDrafter

    with pytest.raises(ConfigError, match=said):
        RapidDrafter(config(rapid))


def test_another_vocabulary_is_refused(small: Path) -> None:
    from remnant_vllm import RapidDrafter

    with pytest.raises(ConfigError, match="a vocabulary of 512, the target one of 600"):
        RapidDrafter(config({"model": str(small)}, 600))
    with pytest.raises(ConfigError, match="marker and retriever are about text"):
        RapidDrafter(config({"model": str(small), "marker": "Q:"}))


def test_a_full_text_is_not_drafted_beyond(small: Path) -> None:
    """Near the engine's longest text and near the end of the second model's cache drafts become shorter."""
    import torch

    from remnant_vllm import RapidDrafter

    given = config({"model": str(small), "tail": 8, "chunk": 16, "k": 2, "confidence": 0.0, "context": 48})
    given.model_config.dtype, given.device_config = torch.float32, SimpleNamespace(device="cpu")
    drafter = RapidDrafter(given)
    drafter.load_model()
    text = np.random.default_rng(0).integers(1, 512, (1, 256)).astype("int32")
    sizes = []
    for length in (200, 201, 203, 206, 208, 212):
        new = length - (sizes[-1][0] if sizes else length - 1)
        drafted = drafter.propose([text[0, length - new : length].tolist()], np.array([length]), text)
        sizes.append((length, len(drafted[0])))
    assert [size for _, size in sizes[:2]] == [2, 2]
    assert sizes[-1][1] == 0
    text = text[:, ::-1].copy()
    assert len(drafter.propose([[1]], np.array([254]), text)[0]) == 1, "one before the last"
    assert drafter.propose([[1]], np.array([255]), text) == [[]]
    assert drafter.propose([[]], np.array([255]), text) == [[]], "still reading its prompt"
