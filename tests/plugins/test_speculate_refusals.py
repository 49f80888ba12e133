"""What drafting cannot honour gets a typed error before the model runs."""

from typing import Any

import pytest
import torch

import remnant_hf
from remnant.errors import ConfigError, UnsupportedPolicy


class Forbidden(torch.nn.Module):
    """Stands in front of a model's layers: whoever computes fails."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("computed")


@pytest.fixture
def target(lab: Any) -> Any:
    model = lab.build(lab.config("llama"))
    model.model.embed_tokens.forward = Forbidden().forward
    return model


@pytest.mark.parametrize("number", [0, -1, 2.0, "4", True])
def test_num_draft(number: Any):
    with pytest.raises(ConfigError, match="num_draft"):
        remnant_hf.speculate("lookup", number)


@pytest.mark.parametrize(("drafter", "message"), [("nothing", "unknown drafter"), (3, "drafter of type int")])
def test_no_drafter(drafter: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        remnant_hf.speculate(drafter)


def test_options_of_a_drafter(replay: Any):
    with pytest.raises(ConfigError, match="lookup"):
        remnant_hf.speculate("lookup", wrong=1)
    with pytest.raises(ConfigError, match="beside a drafter object"):
        remnant_hf.speculate(replay([]), min_match=2)


def test_another_vocabulary(lab: Any, target: Any, replay: Any):
    for size in (127, 129):
        drafts = remnant_hf.speculate(lab.build(lab.config("llama", vocab_size=size, num_hidden_layers=1)))
        with pytest.raises(ConfigError, match=f"a vocabulary of {size} tokens, its target one of 128"):
            lab.go(target, lab.ids(5), None, custom_generate=drafts)
    drafter = replay([])
    drafter.vocab_size = 129
    with pytest.raises(ConfigError, match="a vocabulary of 129"):
        lab.go(target, lab.ids(5), None, custom_generate=remnant_hf.speculate(drafter))


class _Tokenizer:
    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}


def test_another_tokenizer(lab: Any):
    one, other = _Tokenizer("a", "b"), _Tokenizer("b", "a")
    with pytest.raises(ConfigError, match="'a' is 1 for the drafter and 0 for the target"):
        remnant_hf.speculate("lookup", tokenizer=one, drafter_tokenizer=other)
    with pytest.raises(ConfigError, match="both or neither"):
        remnant_hf.speculate("lookup", drafter_tokenizer=other)
    model, ids = lab.model("llama"), lab.ids(12) % 100
    shorter = lab.build(lab.config("llama", vocab_size=120, num_hidden_layers=1))
    drafts = remnant_hf.speculate(shorter, tokenizer=one, drafter_tokenizer=_Tokenizer("a", "b"))
    want = lab.go(model, ids, None, 10, suppress_tokens=list(range(120, 128)))
    got = lab.go(model, ids, None, 10, suppress_tokens=list(range(120, 128)), custom_generate=drafts)
    assert torch.equal(got, want)


def test_a_drafter_larger_than_its_target(lab: Any, target: Any):
    larger = lab.build(lab.config("llama", num_hidden_layers=4))
    with pytest.raises(ConfigError, match="allow_larger=True"):
        lab.go(target, lab.ids(5), None, custom_generate=remnant_hf.speculate(larger))
    model, ids = lab.model("llama"), lab.ids(9)
    drafts = remnant_hf.speculate(larger, allow_larger=True)
    assert torch.equal(lab.go(model, ids, None, custom_generate=drafts), lab.go(model, ids, None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams=2"),
        ({"use_cache": False}, "without a cache"),
        ({"cache_implementation": "static"}, "cannot take tokens back"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"stop_strings": ["a"]}, "without a tokenizer"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
    ],
)
def test_options_of_generate(lab: Any, target: Any, options: dict[str, Any], message: str):
    ids = lab.ids(5)
    with pytest.raises(ConfigError, match=message):
        target.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False,
            custom_generate=remnant_hf.speculate("lookup"), **options,
        )  # fmt: skip


def test_new_tokens_only_under_a_longer_mask(lab: Any):
    model = lab.model("llama")
    padded = torch.nn.functional.pad(lab.ids(8), (2, 0))
    mask = (padded > 0).long()
    cache = lab.full(model)
    lab.go(model, padded, cache, 3, attention_mask=mask)
    longer = torch.cat([mask, torch.ones(1, 6, dtype=torch.int64)], 1)
    with pytest.raises(ConfigError, match="the whole conversation"):
        lab.go(model, lab.ids(4), cache, 3, attention_mask=longer, custom_generate=remnant_hf.speculate("lookup"))


def test_models_that_cannot_go_back(lab: Any):
    model = lab.model("qwen3next")
    with pytest.raises(ConfigError, match="recurrent state"):
        lab.go(model, lab.ids(5), None, custom_generate=remnant_hf.speculate("lookup"))
    with pytest.raises(ConfigError, match="recurrent state"):
        lab.go(lab.model("llama"), lab.ids(5), None, custom_generate=remnant_hf.speculate(model))


def test_policies_that_follow_the_text(lab: Any, target: Any, letters: Any):
    ids = lab.ids(5)
    with pytest.raises(UnsupportedPolicy, match="policy 'tim'"):
        lab.go(target, ids, lab.cache(target, "tim", None), custom_generate=remnant_hf.speculate("lookup"))
    cache = lab.cache(target, "epicache", 64)
    with pytest.raises(UnsupportedPolicy, match="hooks follows the text"):
        lab.go(target, ids, cache, custom_generate=remnant_hf.speculate("lookup"), **remnant_hf.hooks(cache, letters))


def test_latent_attention_over_an_evicting_cache(lab: Any):
    model = lab.model("dsv3")
    with pytest.raises(UnsupportedPolicy, match="latent attention"):
        lab.go(
            model,
            lab.ids(8).repeat(1, 5),
            lab.cache(model, "snapkv"),
            8,
            custom_generate=remnant_hf.speculate("lookup"),
        )


def test_one_object_for_two_calls_at_once(lab: Any, replay: Any):
    model, ids = lab.model("llama"), lab.ids(5)
    drafter = replay([lab.ids(30)[0]])
    drafts, inner = remnant_hf.speculate(drafter), remnant_hf.speculate(drafter)

    class Nested:
        def put(self, value: Any) -> None:
            lab.go(model, ids, None, 2, custom_generate=inner)

        def end(self) -> None: ...

    class Later(Nested):
        count = 0

        def put(self, value: Any) -> None:
            self.count += 1
            if self.count > 1:
                super().put(value)

    with pytest.raises(ConfigError, match="drafting for another call"):
        lab.go(model, ids, None, 4, custom_generate=drafts, stream_to=Later())
    lab.go(model, ids, None, 4, custom_generate=drafts)


def test_drafts_that_do_not_fit(lab: Any, replay: Any):
    model, ids = lab.model("llama"), lab.ids(5)

    class Long(replay):
        def propose(self, limits: Any, sampler: Any = None) -> Any:
            return super().propose([limit + 1 for limit in limits])

    with pytest.raises(ConfigError, match="at most 2"):
        lab.go(model, ids, None, 8, custom_generate=remnant_hf.speculate(Long([lab.ids(40)[0]]), 2))
