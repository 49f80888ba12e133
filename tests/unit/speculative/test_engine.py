"""The loop with a real tiny model: greedy equality, ends, batches, caches, bounds and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from remnant.errors import ConfigError, ShapeError  # noqa: E402
from remnant.speculative import Draft, Sampler, generate  # noqa: E402
from remnant.speculative._text import Text  # noqa: E402

VOCAB = 23
PROMPTS = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([9]), torch.tensor([2, 6, 5])]
SHAPES = {
    "chain": None,
    "wide": lambda row, limit: [-1] + [0] * limit,
    "binary": lambda row, limit: [-1] + [(i - 1) // 2 for i in range(1, limit + 1)],
    "comb": lambda row, limit: [-1] + [max(0, i - 2) for i in range(1, limit + 1)],
    "ragged": lambda row, limit: [-1] + [(i - 1) // (row + 1) for i in range(1, max(1, limit - row) + 1)],
}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(VOCAB)


@pytest.fixture(scope="module")
def plain(model):
    return [model.greedy(prompt, 40) for prompt in PROMPTS]


def texts(output):
    return [row.tolist() for row in output.ids]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("g", [0, 1, 2, 3, 7])
def test_greedy_output_is_that_of_plain_decoding(model, plain, oracle, shape, g):
    drafter = oracle(plain, VOCAB, shape=SHAPES[shape])
    for n in (1, 2, 19):
        assert texts(generate(model, drafter, PROMPTS, n, num_draft=g)) == [row[:n] for row in plain]


def test_fewer_passes_than_tokens(model, plain, oracle):
    out = generate(model, oracle(plain, VOCAB, wrong=0.0), PROMPTS, 31, num_draft=4)
    assert out.stats.passes == 3 * 6  # the first token comes with the prompt, then 30 in blocks of 5
    assert out.stats.acceptance == 1.0
    assert out.stats.block_efficiency == 5.0
    assert out.stats.by_position == [18] * 4
    alone = generate(model, None, PROMPTS, 31)
    assert texts(alone) == texts(out) == [row[:31] for row in plain]
    assert alone.stats.block_efficiency == 1.0


@pytest.mark.parametrize("shape", ["chain", "binary"])
@pytest.mark.parametrize("drop", [True, False])
def test_an_end_token_inside_a_draft(model, plain, oracle, shape, drop):
    for place in (0, 1, 5, 6, 7):
        eos = plain[0][place]
        want = [row[: row.index(eos) + 1] if eos in row else row for row in plain]
        drafter = oracle(plain, VOCAB, wrong=0.1, shape=SHAPES[shape])
        got = generate(model, drafter, PROMPTS, 40, num_draft=6, eos=eos, drop_finished=drop)
        assert texts(got) == want
        assert texts(generate(model, drafter, PROMPTS, 40, num_draft=6, eos=[eos, VOCAB + 5])) == want


@pytest.mark.parametrize("shape", ["chain", "comb"])
def test_the_cache_is_that_of_a_fresh_prefill_after_every_block(model, plain, oracle, shape, monkeypatch):
    checked = []

    def commit(keep, real=model.commit):
        real(keep)
        for row, cache in enumerate(model.caches):
            n = cache.shape[3]
            whole = torch.cat([PROMPTS[row], torch.tensor(plain[row])])
            checked.append(float((cache - model.fresh(whole[:n])[1]).abs().max()))

    monkeypatch.setattr(model, "commit", commit)
    out = generate(model, oracle(plain, VOCAB, shape=SHAPES[shape]), PROMPTS, 20, num_draft=5, drop_finished=False)
    assert len(checked) > 12
    assert max(checked) < 1e-10
    # The newest token is never cached.
    assert [cache.shape[3] for cache in model.caches] == [len(p) + 19 for p in PROMPTS]
    assert texts(out) == [row[:20] for row in plain]


def test_rejected_candidates_leave_at_once(model, plain, oracle, monkeypatch):
    sizes = []

    def commit(keep, real=model.commit):
        before = model.nbytes()
        real(keep)
        sizes.append((before, model.nbytes()))

    monkeypatch.setattr(model, "commit", commit)
    token = 2 * 2 * 16 * 8  # layers, keys and values, width, bytes
    out = generate(model, oracle(plain, VOCAB, wrong=1.0, seed=5), [PROMPTS[0]], 6, num_draft=5)
    for before, after in sizes:
        assert (before - after) % token == 0
    held = (len(PROMPTS[0]) + 5) * token
    assert sizes[-1][1] == held
    # Nothing was accepted, so that block i had 5 - i columns, each with its logits.
    assert out.stats.peak_bytes == max(before + (5 - i) * VOCAB * 8 for i, (before, _) in enumerate(sizes))


def test_rows_equal_their_own_runs(model, plain, oracle):
    drafter = oracle(plain, VOCAB, wrong=0.4, seed=3)
    together = texts(generate(model, drafter, PROMPTS, 17, num_draft=4))
    for row, prompt in enumerate(PROMPTS):
        assert texts(generate(model, oracle([plain[row]], VOCAB, seed=9), [prompt], 17, num_draft=3)) == [together[row]]


def test_padded_prompts(model, plain, oracle):
    ids, mask = torch.zeros(3, 6, dtype=torch.int64), torch.zeros(3, 6, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        ids[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, 1
    got = generate(model, oracle(plain, VOCAB), ids, 9, mask=mask)
    assert texts(got) == [row[:9] for row in plain]


def penalty(before, scores):
    """Tokens that were written before become less likely, the more often the less."""
    counts = torch.bincount(before[0], minlength=scores.shape[1]).to(scores)
    scores -= 2.5 * counts
    return scores


@pytest.mark.parametrize("shape", ["chain", "binary", "wide"])
def test_processors_see_the_drafted_tokens_before_theirs(model, oracle, shape):
    want = [model.greedy(prompt, 15, process=penalty) for prompt in PROMPTS]
    assert want != [model.greedy(prompt, 15) for prompt in PROMPTS]
    sampler = Sampler(0.0, processors=[penalty])
    drafter = oracle(want, VOCAB, wrong=0.2, shape=SHAPES[shape])
    got = generate(model, drafter, PROMPTS, 15, sampler, num_draft=6)
    assert texts(got) == want
    assert got.stats.accepted > 5


def test_a_history_of_generated_tokens_only(model, oracle):
    def beyond(start):
        return lambda before, scores: penalty(before[:, start:], scores)

    want = [model.greedy(prompt, 12, process=beyond(len(prompt))) for prompt in PROMPTS]
    sampler = Sampler(0.0, processors=[penalty])
    got = generate(model, oracle(want, VOCAB), PROMPTS, 12, sampler, history="generated")
    assert texts(got) == want


def test_tokens_stream_in_order_and_once(model, plain, oracle):
    seen = [[], [], []]
    generate(model, oracle(plain, VOCAB), PROMPTS, 13, on_tokens=lambda row, ids: seen[row].extend(ids.tolist()))
    assert seen == [row[:13] for row in plain]


def test_a_caller_may_stop_a_row_at_any_token(model, plain, oracle):
    asked = []

    def stop(row, ids):
        asked.append((row, ids.tolist()))
        return row == 1 and len(ids) == 4

    got = generate(model, oracle(plain, VOCAB, wrong=0.0), PROMPTS, 9, num_draft=6, stop=stop)
    assert texts(got) == [plain[0][:9], plain[1][:4], plain[2][:9]]
    for row, ids in asked:
        assert ids == plain[row][: len(ids)]
    assert [len(ids) for row, ids in asked if row == 0] == list(range(1, 10))


def test_a_row_ends_at_its_bound_even_within_what_was_accepted():
    text = Text([torch.tensor([1, 2])], [3], eos=[9], stop=None, device=torch.device("cpu"))
    assert text.append(0, [3, 4]) == [3, 4]
    assert (text.left(0), text.done) == (1, [False])
    assert text.append(0, [5, 6, 9]) == [5]
    assert (text.left(0), text.done) == (0, [True])
    assert text.append(0, [7]) == []
    assert text.new(0).tolist() == [3, 4, 5]


def test_a_plan_bounds_drafts_and_texts(model, plain, oracle):
    widest = []

    def step(tokens, *rest, real=model.step):
        widest.append(tokens.shape[1])
        return real(tokens, *rest)

    watched: Any = SimpleNamespace(**{n: getattr(model, n) for n in ("prefill", "commit", "crop", "select", "nbytes")})
    watched.step, watched.vocab_size, watched.weight_bytes = step, VOCAB, 0
    plan: Any = SimpleNamespace(n=4, depth=2, top_k=2, L_max=12)
    none: Any = SimpleNamespace(n=1, depth=0, top_k=1, L_max=99)
    short: Any = SimpleNamespace(n=1, depth=0, top_k=1, L_max=5)
    for shape in ("chain", "binary", "comb"):
        got = generate(watched, oracle(plain, VOCAB, shape=SHAPES[shape]), PROMPTS, 40, plan=plan, num_draft=9)
        assert texts(got) == [row[: 12 - len(p)] for row, p in zip(plain, PROMPTS, strict=True)]
        assert max(widest) == (3 if shape == "chain" else 4)
        assert len(got.stats.by_position) == 2
        widest.clear()
    off = generate(watched, oracle(plain, VOCAB), PROMPTS, 5, plan=none)
    assert max(widest) == 1
    assert off.stats.proposed == 0
    with pytest.raises(ConfigError, match="prompt of 5 tokens under a plan for 5"):
        generate(watched, None, PROMPTS, 5, plan=short)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_fuzzed_trees_give_plain_decoding(model, plain, oracle, data):
    def shape(row, limit):
        n = data.draw(st.integers(1, limit))
        return [-1] + [data.draw(st.integers(0, i - 1)) for i in range(1, n + 1)]

    n, wrong = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([0.0, 0.2, 0.6]))
    drafter = oracle(plain, VOCAB, wrong=wrong, seed=data.draw(st.integers(0, 99)), shape=shape)
    got = generate(model, drafter, PROMPTS, n, num_draft=data.draw(st.integers(1, 9)))
    assert texts(got) == [row[:n] for row in plain]


def test_what_is_refused(model, plain, oracle):
    good = oracle(plain, VOCAB)
    with pytest.raises(ConfigError, match="24 tokens for a target of 23"):
        generate(model, oracle(plain, VOCAB + 1), PROMPTS, 4)
    with pytest.raises(ConfigError, match="max_new_tokens=0"):
        generate(model, good, PROMPTS, 0)
    with pytest.raises(ConfigError, match="num_draft=-1"):
        generate(model, good, PROMPTS, 4, num_draft=-1)
    with pytest.raises(ConfigError, match="without logits"):
        generate(model, good, PROMPTS, 4, tilt=lambda z, zq: z)
    with pytest.raises(ConfigError, match="without a drafter"):
        generate(model, None, PROMPTS, 4, tilt=lambda z, zq: z)
    for prompts in ([], [torch.tensor([1.0])], [torch.zeros(0, dtype=torch.int64)], torch.tensor([1, 2])):
        with pytest.raises(ShapeError):
            generate(model, good, prompts, 4)
    with pytest.raises(ShapeError, match="mask"):
        generate(model, good, torch.ones(1, 2, dtype=torch.int64), 4, mask=torch.ones(1, 3))


def test_a_tree_under_another_root(model, plain, oracle):
    drafter = oracle(plain, VOCAB, shape=SHAPES["wide"])
    real = drafter.draft

    def draft(row, limit):
        tree = real(row, limit).tree
        tree.ids[0] += 1
        return Draft(tree.ids[1:], tree=tree)

    drafter.draft = draft
    with pytest.raises(ConfigError, match="root"):
        generate(model, drafter, PROMPTS, 4)
