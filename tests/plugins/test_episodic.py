"""One cache per topic."""

import warnings

import pytest
import torch

from remnant.errors import ConfigError
from remnant.kv.episodes import Episodes
from remnant_hf import feed
from remnant_hf.cache import RemnantCache
from remnant_hf.episodic import EpisodicCache

TURNS = [
    "bread needs yeast and flour",
    "the oven bakes bread and dough",
    "planets orbit stars",
    "a telescope shows planets and stars",
    "dough of flour and yeast",
    "stars seen by telescope",
]


def snapshot(cache: RemnantCache) -> list[list[torch.Tensor]]:
    """Copies of everything that a cache stores."""
    dense = [layer.store.dense() for layer in cache.governed]
    return [[x.clone() for x in (d.k, d.v, d.pos, *d.side.values())] for d in dense]


@pytest.mark.parametrize("allocation", ["uniform", "flat"])
def test_budgets_blocks_and_topics(letters_model, letters, allocation):
    steps: list[int] = []
    made = EpisodicCache.build(
        letters_model,
        letters,
        TURNS,
        2,
        budget=24,
        block=40,
        conv_window=1,
        medoids=2,
        allocation=allocation,
        progress=lambda done, total, text: steps.append(done),
    )
    assert isinstance(made.episodes, Episodes)
    assert len(made) == 2
    assert made.episodes.labels.tolist() == [0, 0, 1, 1, 0, 1]
    n = 1 + len("\n".join(TURNS))
    assert steps[-1] == n
    for cache in made.caches:
        assert cache.get_seq_length() == n
        for layer in range(2):
            kept = cache.kept_positions(layer)
            assert int((kept >= 0).sum()) == 2 * 24
            assert {0, 1, 2, 3} <= set(kept[0, 0].tolist())
    assert made.nearest("flour") == 0
    assert made.nearest("telescope") == 1
    assert made.nearest("zzz") is None


def test_the_whole_conversation_is_never_held(letters_model):
    ids = torch.randint(2, 128, (900,), generator=torch.Generator().manual_seed(1))
    made = EpisodicCache.build(letters_model, None, ids, 2, budget=24, block=48, utterance=10, medoids=1, conv_window=2)
    whole = RemnantCache(letters_model.config, "full")
    feed(letters_model, ids[None], whole)
    for cache in made.caches:
        assert cache.stats().peak_bytes < whole.stats().peak_bytes / 3


@pytest.mark.parametrize("question", ["yeast and flour?", "zzz"])
def test_a_question_leaves_the_stored_caches_as_they_are(letters_model, letters, question):
    made = EpisodicCache.build(letters_model, letters, TURNS, 2, budget=24, block=40, conv_window=1)
    before = [snapshot(cache) for cache in made.caches]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = made.ask(question, max_new_tokens=5)
    assert isinstance(first, str)
    assert made.ask(question, max_new_tokens=5) == first
    for cache, old in zip(made.caches, before, strict=True):
        assert all(
            torch.equal(a, b) for x, y in zip(snapshot(cache), old, strict=True) for a, b in zip(x, y, strict=True)
        )


def test_an_answer_is_that_of_the_chosen_cache(letters_model, letters):
    made = EpisodicCache.build(letters_model, letters, TURNS, 2, budget=24, block=40, conv_window=1)
    question = letters.encode("flour")
    cache, ids, got = made.select("flour"), question, []
    with torch.no_grad():
        for _ in range(4):
            out = letters_model(input_ids=torch.tensor([ids]), past_key_values=cache)
            ids = [int(out.logits[0, -1].argmax())]
            got += ids
    assert made.ask(question, max_new_tokens=4) == got


def test_one_block_and_one_episode_is_max_pooled_attention_of_the_patched_prompt(letters_model):
    """Against attention weights of a plain eager run, renormalised over the past."""
    from transformers import DynamicCache

    ids = torch.randint(2, 128, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    made = EpisodicCache.build(
        letters_model, None, ids, 1, budget=20, block=100, utterance=10, conv_window=1, medoids=2, sinks=0,
        allocation="uniform",
    )  # fmt: skip
    probe = list(made.episodes.prompts[0])
    assert len(probe) == 20
    implementation = letters_model.config._attn_implementation
    letters_model.set_attn_implementation("eager")
    with torch.no_grad():
        past = DynamicCache(config=letters_model.config)
        letters_model(torch.tensor([ids]), past_key_values=past)
        out = letters_model(torch.tensor([probe]), past_key_values=past, output_attentions=True)
    letters_model.set_attn_implementation(implementation)
    for layer, weights in enumerate(out.attentions):
        p = weights[..., :60]
        scores = (p / p.sum(-1, keepdim=True)).view(1, 2, 2, 20, 60).amax((2, 3))
        want = scores.topk(20).indices.sort().values
        assert torch.equal(made.caches[0].kept_positions(layer), want)


def test_off_topic_goes_to_the_fallback(letters_model, letters):
    made = EpisodicCache.build(letters_model, letters, TURNS, 2, budget=24, block=40, conv_window=1)
    cache = made.select("zzz")
    assert cache.policy.name == "keydiff"
    assert cache.kept_positions(0).shape[-1] == 24
    made.fallback = None
    assert made.select("zzz").policy.name == "epicache"


def test_layer_budgets_sum_to_the_total(letters_model, letters):
    made = EpisodicCache.build(
        letters_model, letters, TURNS, 1, budget=24, block=60, conv_window=1, layer_power=1.3, allocation="uniform"
    )
    kept = [made.caches[0].kept_positions(layer).shape[-1] for layer in range(2)]
    assert sum(kept) == 48
    assert kept[0] != kept[1]


def test_caches_may_wait_elsewhere(letters_model, letters):
    made = EpisodicCache.build(letters_model, letters, TURNS, 2, budget=24, block=40, conv_window=1, device="cpu")
    assert isinstance(made.ask("flour", 3), str)


def test_an_empty_conversation_is_refused(letters_model, letters):
    with pytest.raises(ConfigError):
        EpisodicCache.build(letters_model, letters, [], budget=24)
