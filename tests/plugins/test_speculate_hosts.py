"""Drafting for whatever a user of `generate` has: models, inputs, processors and drafters of every kind.

Each is the same with and without drafts, or refused with a typed error before a token is written.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

import remnant_hf
from remnant.errors import ConfigError, ShapeError
from remnant.speculative import Draft

t: Any = transformers
V, PROMPT, NEW = 128, 20, 12
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
WIDE = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 8}
ABSOLUTE: dict[str, Any] = {
    "vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
MIXED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
HEADS = {k: v for k, v in WIDE.items() if k not in ("num_key_value_heads", "head_dim")}
CONFIGS: dict[str, Any] = {
    "mistral, sliding": lambda: t.MistralConfig(**WIDE, sliding_window=8),
    "qwen2": lambda: t.Qwen2Config(**WIDE),
    "gemma2": lambda: t.Gemma2Config(**WIDE, **MIXED, query_pre_attn_scalar=8),
    "gpt2": lambda: t.GPT2Config(**ABSOLUTE),
    "neox": lambda: t.GPTNeoXConfig(**HEADS),
    "phi": lambda: t.PhiConfig(**WIDE),
    "olmo": lambda: t.OlmoConfig(**WIDE),
    "granite": lambda: t.GraniteConfig(**WIDE),
    "cohere2": lambda: t.Cohere2Config(**WIDE, **MIXED),
    "opt": lambda: t.OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=512),
    "mixtral": lambda: t.MixtralConfig(**WIDE, num_local_experts=4, num_experts_per_tok=2),
    "falcon": lambda: t.FalconConfig(**SMALL),
    "falcon, alibi": lambda: t.FalconConfig(**SMALL, alibi=True),
    "llama4": lambda: t.Llama4TextConfig(**WIDE, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=8),
    "lfm2": lambda: t.Lfm2Config(**WIDE, layer_types=["conv", "full_attention"], block_multiple_of=8),
    "mamba": lambda: t.MambaConfig(vocab_size=V, hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=None),
    "jamba": lambda: t.JambaConfig(
        **{**HEADS, "num_hidden_layers": 2}, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1,
        num_experts=2, mamba_d_state=4, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    "t5": lambda: t.T5Config(
        vocab_size=V, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0, eos_token_id=None,
    ),
}  # fmt: skip
IN_BATCHES = tuple(list(CONFIGS)[:11])
ALONE = ("falcon", "falcon, alibi", "llama4", "lfm2")


@pytest.fixture(scope="module")
def zoo(lab: Any) -> Any:
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            torch.manual_seed(0)
            kind = t.T5ForConditionalGeneration if name == "t5" else t.AutoModelForCausalLM
            config = CONFIGS[name]()
            made[name] = (kind(config) if name == "t5" else kind.from_config(config)).eval()
            with torch.no_grad():
                for p in made[name].parameters():
                    if p.dim() > 1:
                        p.mul_(6)
        return made[name]

    return get


def run(model: Any, ids: Any, mask: Any, drafter: Any = None, options: Any = None, **kw: Any) -> Any:
    """Ids with the answer; greedy."""
    if drafter is not None:
        kw["custom_generate"] = remnant_hf.speculate(drafter, **(options or {}))
    return model.generate(ids, **{"attention_mask": mask, "do_sample": False, "max_new_tokens": NEW, **kw})


def unpadded(out: Any, mask: Any) -> list[Any]:
    return [row[int((real == 0).sum()) :] for row, real in zip(out, mask, strict=True)]


def both(lab: Any, replay: Any, model: Any, rows: int, **kw: Any) -> tuple[Any, Any]:
    """The answers without drafts, and with drafts of which most are right."""
    _, ids, mask = lab.padded((PROMPT, PROMPT - 5)[:rows])
    plain = run(model, ids, mask, **kw)
    return plain, run(model, ids, mask, replay(unpadded(plain, mask)), **kw)


@pytest.mark.parametrize("name", [*IN_BATCHES, *ALONE])
def test_every_architecture(lab: Any, replay: Any, zoo: Any, name: str):
    for rows in (1, 2) if name in IN_BATCHES else (1,):
        plain, drafted = both(lab, replay, zoo(name), rows)
        assert plain.tolist() == drafted.tolist()


@pytest.mark.parametrize(("name", "message"), [
    ("falcon, alibi", "ALiBi"), ("llama4", "chunked_attention"), ("lfm2", "conv"), ("falcon", "AttentionInterface"),
])  # fmt: skip
def test_rows_apart_are_refused_where_masks_are_not_ours(lab: Any, zoo: Any, name: str, message: str):
    _, ids, mask = lab.padded((9, 6))
    with pytest.raises(ConfigError, match=message):
        run(zoo(name), ids, mask, "lookup")


@pytest.mark.parametrize(("name", "message"), [("mamba", "recurrent"), ("jamba", "recurrent"), ("t5", "encoder")])
def test_no_left_to_right_cache(lab: Any, zoo: Any, name: str, message: str):
    ids = lab.ids(9)
    with pytest.raises(ConfigError, match=message):
        run(zoo(name), ids, torch.ones_like(ids), "lookup")


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_change_with_length(lab: Any, replay: Any, kind: str):
    factors = {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8} if kind == "longrope" else {"factor": 4.0}
    more = {"original_max_position_embeddings": 64} if kind == "longrope" else {"max_position_embeddings": 64}
    name = "phi3" if kind == "longrope" else "llama"
    model = lab.build(lab.config(name, rope_scaling={"rope_type": kind, **factors}, **more))
    plain, drafted = both(lab, replay, model, 1)
    assert plain.tolist() == drafted.tolist()
    with pytest.raises(ConfigError, match="frequencies change at 64"):
        both(lab, replay, model, 1, max_new_tokens=64 - PROMPT + 1)
    if kind == "longrope":  # behind the mark they change no more
        ids = lab.ids(70)
        plain = run(model, ids, torch.ones_like(ids))
        assert run(model, ids, torch.ones_like(ids), replay(plain)).tolist() == plain.tolist()


class _ByPlace(LogitsProcessor):
    """Wants another token in every row, told apart by their place; writes into what it is given."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        for row in range(len(scores)):
            scores[row, 7 + row] += 1000.0 * (input_ids.shape[1] % 3 == 0)
        return scores


class _EndByPlace(StoppingCriteria):
    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor([input_ids.shape[1] >= PROMPT + 4 + 4 * row for row in range(len(input_ids))])


BY_ROW: dict[str, Any] = {
    "prefixes": {"prefix_allowed_tokens_fn": lambda row, ids: [3, 4, 5] if row == 0 else [10, 11, 12]},
    "encoder penalty": {"encoder_repetition_penalty": 1.5},
    "encoder n-grams": {"encoder_no_repeat_ngram_size": 2},
    "the user's own": {"logits_processor": LogitsProcessorList([_ByPlace()])},
    "repetition": {"repetition_penalty": 1.3},
    "ends": {"stopping_criteria": StoppingCriteriaList([_EndByPlace()]), "eos_token_id": 1},
    "shortest answers": {"eos_token_id": list(range(2, V, 2)), "min_length": PROMPT + 6},
}


@pytest.mark.parametrize("name", BY_ROW)
@pytest.mark.parametrize("inference", [False, True])
def test_each_row_is_asked_in_its_own_place(lab: Any, replay: Any, name: str, inference: bool):
    with torch.inference_mode(inference):
        plain, drafted = both(lab, replay, lab.model("llama"), 2, **BY_ROW[name])
    assert plain.tolist() == drafted.tolist()


def test_a_watermark_that_remembers(lab: Any, replay: Any):
    with pytest.raises(ConfigError, match="SynthID"):
        both(lab, replay, lab.model("llama"), 1,
             watermarking_config=t.SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3))  # fmt: skip
    plain, drafted = both(lab, replay, lab.model("llama"), 2, watermarking_config=t.WatermarkingConfig(bias=8.0))
    assert plain.tolist() == drafted.tolist()


@pytest.mark.parametrize("options", [{"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "low"}])
def test_other_ways_to_generate(lab: Any, options: dict[str, Any]):
    ids = lab.ids(9)
    with pytest.raises(ConfigError, match="with drafts"):
        run(lab.model("llama"), ids, torch.ones_like(ids), "lookup", **options)


def test_what_a_model_is_told_beside_its_tokens(lab: Any, zoo: Any):
    model = zoo("gpt2")
    _, ids, mask = lab.padded((PROMPT, PROMPT - 5))
    types = torch.arange(PROMPT).expand(2, -1) // 9
    told = [{"token_type_ids": types}, {"inputs_embeds": model.transformer.wte(ids) * 2},
            {"position_ids": torch.arange(PROMPT).expand(2, -1) * 2}]  # fmt: skip
    for more in told:
        alone = {name: value[:1] for name, value in more.items()}
        plain = run(model, ids[:1], mask[:1], **alone)
        assert run(model, ids[:1], mask[:1], "lookup", **alone).tolist() == plain.tolist()
        assert plain.tolist() != run(model, ids[:1], mask[:1]).tolist()
        with pytest.raises(ConfigError, match=next(iter(more))):
            run(model, ids, mask, "lookup", **more)
        with pytest.raises(ConfigError, match=next(iter(more))):
            run(model, ids[:1], mask[:1], "lookup", {"generator": torch.Generator()}, **alone)


def test_padding_on_the_right(lab: Any):
    _, ids, mask = lab.padded((9, 6))
    with pytest.raises(ConfigError, match="padding on the left"):
        run(lab.model("llama"), ids.flip(1), mask.flip(1), "lookup")


def test_a_cache_that_holds_more_than_the_prompt(lab: Any):
    model, ids = lab.model("llama"), lab.ids(9)
    cache = lab.full(model)
    run(model, ids, torch.ones_like(ids), past_key_values=cache)
    with pytest.raises(ConfigError, match="whole conversation"):
        run(model, ids, torch.ones_like(ids), "lookup", {"generator": torch.Generator()}, past_key_values=cache)


def _say(*ids: int, q: Any = None) -> Any:
    return lambda rows: [Draft(torch.tensor(ids), q) for _ in range(rows)]


GARBAGE: dict[str, Any] = {
    "unknown token": (_say(V), ShapeError), "negative token": (_say(-1), ShapeError),
    "no values": (lambda rows: [Draft(torch.zeros(1, dtype=torch.int64, device="meta"))] * rows, ShapeError),
    "no list": (lambda rows: None, ConfigError), "too few": (lambda rows: [], ConfigError),
    "too many": (lambda rows: _say(3)(rows + 1), ConfigError),
    "no drafts": (lambda rows: [torch.tensor([3])] * rows, ConfigError),
    "q below 0": (_say(3, q=-torch.ones(1, V)), ShapeError),
    "q without mass": (_say(3, q=torch.zeros(1, V)), ShapeError),
    "q is nan": (_say(3, q=torch.full((1, V), float("nan"))), ShapeError),
    "q too wide": (_say(3, q=torch.ones(1, V + 1) / (V + 1)), ShapeError),
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_drafter_that_talks_nonsense(lab: Any, replay: Any, name: str, rows: int):
    answer, error = GARBAGE[name]

    class Nonsense(replay):
        def propose(self, limits: Any, sampler: Any = None) -> Any:
            return answer(len(limits))

    model, ids = lab.model("llama"), lab.ids(9, rows=rows)
    for sample in (False, True):
        with pytest.raises(error):
            run(model, ids, torch.ones_like(ids), Nonsense([]), do_sample=sample)


def test_drafter_models_that_cannot_serve(lab: Any, zoo: Any):
    model, ids = lab.model("llama"), lab.ids(PROMPT)
    small = t.GPT2LMHeadModel(t.GPT2Config(**{**ABSOLUTE, "n_layer": 1}, n_positions=PROMPT + NEW - 1)).eval()
    for drafter, message in ((small, "31 positions"), (model.model, "no language model head")):
        with pytest.raises(ConfigError, match=message):
            run(model, ids, torch.ones_like(ids), drafter)


def test_a_compiled_drafter(lab: Any):
    model, ids = lab.model("llama"), lab.ids(PROMPT)
    drafts = remnant_hf.speculate(torch.compile(lab.build(lab.config("llama", num_hidden_layers=1)), backend="eager"))
    with torch.compiler.set_stance("force_eager"):  # the wrapper is what is tested, and compiling takes its time
        out = run(model, ids, torch.ones_like(ids), custom_generate=drafts)
    assert out.tolist() == run(model, ids, torch.ones_like(ids)).tolist()
    assert drafts.stats.proposed > 0


@pytest.mark.parametrize("policy", ["full", "snapkv", "h2o"])
def test_a_conversation_of_which_some_turns_are_drafted(lab: Any, replay: Any, policy: str):
    model = lab.model("llama")

    def talk(answers: Any, drafted: tuple[bool, ...]) -> list[Any]:
        cache, ids, out = lab.cache(model, policy), lab.ids(30), []
        for turn, draft in enumerate(drafted):
            drafter = replay([answers[turn]]) if draft else None
            ids = run(model, ids, torch.ones_like(ids), drafter, past_key_values=cache)
            out.append(ids[0])
            ids = torch.cat([ids, lab.ids(5, seed=turn)], 1)
        return out

    plain = talk(None, (False,) * 3)
    for drafted in ((True, True, True), (True, False, True), (False, True, False)):
        assert [x.tolist() for x in talk(plain, drafted)] == [x.tolist() for x in plain]


@pytest.mark.parametrize("options", [{}, {"generator": torch.Generator()}])
def test_a_cache_goes_on_after_a_call_that_failed(lab: Any, replay: Any, options: Any):
    model, ids = lab.model("llama"), lab.ids(30)

    class Fails(replay):
        calls = 0

        def propose(self, limits: Any, sampler: Any = None) -> Any:
            self.calls += 1
            if self.calls == 3:
                raise ZeroDivisionError
            return super().propose(limits, sampler)

    cache = lab.cache(model)
    plain = run(model, ids, torch.ones_like(ids), past_key_values=lab.cache(model))
    with pytest.raises(ZeroDivisionError):
        run(model, ids, torch.ones_like(ids), Fails(plain), options, past_key_values=cache)
    known = plain[:, : cache.get_seq_length() + 1]
    rest = plain.shape[1] - known.shape[1]
    assert 0 < rest < NEW
    assert (
        run(model, known, torch.ones_like(known), past_key_values=cache, max_new_tokens=rest).tolist() == plain.tolist()
    )
