"""A drafter with a short prompt of its own, in the loop: lossless without a tilt, exactly what it says with one."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from remnant.errors import ConfigError  # noqa: E402
from remnant.speculative import Sampler, generate  # noqa: E402
from remnant.speculative.drafter import Drafter  # noqa: E402
from remnant.speculative.drafters.rapid import RagDrafter  # noqa: E402
from remnant.speculative.rag_context import RagContext, RagPrompt  # noqa: E402
from remnant.speculative.rapid import Audit, Tilt  # noqa: E402

V, ROWS = 3, 3000
MODES = ("exact", "geometric", "kl", "paper")


def half(ids):
    """The second half of a prompt."""
    return ids[len(ids) // 2 :]


def prompts(*lengths, vocab=23, seed=0):
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=source) for n in lengths]


@pytest.fixture(scope="module")
def tables():
    source = torch.Generator().manual_seed(0)
    return [torch.randn(V, V, generator=source, dtype=torch.float64) for _ in range(2)]


# Without a tilt.


@pytest.mark.parametrize("gamma", [1, 3, 7])
@pytest.mark.parametrize("confidence", [0.0, 0.4])
def test_greedy_output_is_that_of_the_target(tiny, gamma, confidence):
    """Rows of different lengths, one of them too short for a short prompt."""
    target, given = tiny(), prompts(40, 17, 1, 28)
    drafter = RagDrafter(tiny(), half, confidence=confidence)
    out = generate(target, drafter, given, 20, num_draft=gamma)
    assert [ids.tolist() for ids in out.ids] == [target.greedy(prompt, 20) for prompt in given]
    assert [p.source for p in drafter.prompts] == ["passages", "passages", "whole", "passages"]
    assert out.stats.proposed > 0


def test_it_reads_the_short_prompt_at_positions_of_its_own(tiny):
    """Its drafts are those of the model on the short prompt and nothing else."""
    model, long = tiny(), prompts(40)
    drafter = RagDrafter(model, half, confidence=0.0)
    drafter.reset(long)
    text = half(long[0])
    drafter.propose([1])
    assert model.caches[0].shape[3] == len(text) == 20
    for emitted in ([5, 6], [7], [1, 2, 3]):
        (draft,) = drafter.propose([4])
        assert draft.ids.tolist() == tiny().greedy(text, 4)
        drafter.observe([torch.tensor(emitted)])
        text = torch.cat([text, torch.tensor(emitted)])
    drafter.rollback([4])
    assert drafter.propose([4])[0].ids.tolist() == tiny().greedy(text[:-4], 4)


def test_one_model_may_be_both(tiny):
    """Over a cache of its own; on the same prompt nothing is ever rejected."""
    given = prompts(30, 21)
    drafter = RagDrafter(tiny(), lambda ids: RagPrompt(ids, "passages"), confidence=0.0)
    out = generate(tiny(), drafter, given, 16, num_draft=3)
    assert out.stats.acceptance == 1.0
    assert out.stats.passes < 16


def test_a_prompt_that_is_not_shorter_is_not_drafted_for(tiny):
    model = tiny()
    drafter = RagDrafter(model, lambda ids: ids)
    out = generate(tiny(), drafter, prompts(12), 8)
    assert out.stats.proposed == 0
    assert model.steps == 0
    assert not model.caches, "nor read"


def test_sampling_keeps_the_targets_distribution(tables, markov, chi_square):
    z, zq = tables
    sampler = Sampler(0.9, generator=torch.Generator().manual_seed(1))
    drafter = RagDrafter(markov(zq), half, confidence=0.0)
    counts = counted(markov(z), drafter, sampler)
    assert chi_square(counts, joint((z / 0.9).softmax(-1))) < 4


def test_processors_see_only_what_was_generated(tiny):
    seen = []

    def spy(history, logits):
        seen.append(history[0].tolist())
        return logits

    given = prompts(16)
    drafter = RagDrafter(tiny(), half, confidence=0.0)
    out = generate(tiny(), drafter, given, 6, Sampler(0.0, processors=[spy]), num_draft=2, history="generated")
    text = out.ids[0].tolist()
    assert [] in seen
    assert text[:4] in seen
    assert all(len(history) <= 6 for history in seen)


def test_it_is_a_drafter_and_finds_passages(tiny):
    long = torch.tensor([7] * 20 + [20, 21, 22] + [8] * 20 + [20, 21])
    drafter = RagDrafter(tiny(), RagContext(None, tail=2, chunk=5, k=1))
    assert isinstance(drafter, Drafter)
    drafter.reset([long])
    assert drafter.prompts[0].ids.tolist() == [20, 21, 22, 8, 8, 20, 21]


# With one.


def counted(target, drafter, sampler, **more):
    """Counts of the three tokens behind token 0, over many rows."""
    given = torch.zeros(ROWS, 4, dtype=torch.int64)
    out = generate(target, drafter, given, 3, sampler, num_draft=2, **more)
    ids = torch.stack(out.ids)
    return torch.bincount(ids[:, 0] * V * V + ids[:, 1] * V + ids[:, 2], minlength=V**3)


def joint(p):
    return ROWS * (p[0][:, None, None] * p[:, :, None] * p[None, :, :]).flatten()


@pytest.mark.parametrize("mode", ["exact", "geometric", "kl"])
def test_the_output_is_distributed_as_the_tilted(tables, markov, chi_square, mode):
    """First token, accepted ones, corrections and bonus tokens alike."""
    z, zq = tables
    tilt = Tilt(mode, eta=3.0, lam=0.6, delta=0.2)
    sampler = Sampler(0.9, generator=torch.Generator().manual_seed(2))
    counts = counted(markov(z), RagDrafter(markov(zq), half, tilt, confidence=0.0), sampler, tilt=tilt)
    tilted = (tilt(z, zq) / 0.9).softmax(-1)
    assert chi_square(counts, joint(tilted)) < 4
    assert chi_square(counts, joint((z / 0.9).softmax(-1))) > 6, "and not as the target"


def test_the_papers_rule_samples_what_it_samples(tables, markov, chi_square):
    """Its residual after a rejection, also for the first token; enumerated for two tokens."""
    z, zq = tables
    tilt = Tilt("paper", eta=3.0, mask_alpha=0.0)
    p, q, tilted = z.softmax(-1), zq.softmax(-1), tilt(z, zq).softmax(-1)
    kept = torch.minimum(tilted, q)
    drafted = kept + (1 - kept.sum(-1, keepdim=True)) * tilt.residual(p, q, tilted)
    sampler = Sampler(1.0, generator=torch.Generator().manual_seed(3))
    given = torch.zeros(ROWS, 4, dtype=torch.int64)
    drafter = RagDrafter(markov(zq), half, tilt, confidence=0.0)
    out = generate(markov(z), drafter, given, 3, sampler, num_draft=1, tilt=tilt)
    ids = torch.stack(out.ids)
    counts = torch.bincount(ids[:, 0] * V + ids[:, 1], minlength=V * V)
    assert chi_square(counts, ROWS * (drafted[0][:, None] * drafted).flatten()) < 4
    assert chi_square(counts, ROWS * (tilted[0][:, None] * tilted).flatten()) > 6


@pytest.mark.parametrize("mode", ["exact", "geometric", "kl"])
@pytest.mark.parametrize("gamma", [1, 4])
def test_greedy_output_under_a_tilt_does_not_depend_on_the_drafts(tiny, mode, gamma):
    """It is the most likely token of the mixture, step by step; computed here without caches and drafts."""
    tilt = Tilt(mode, eta=4.0, lam=0.5, delta=0.3)
    long = prompts(24)[0]
    drafter = RagDrafter(tiny(seed=1), half, tilt, confidence=0.0)
    out = generate(tiny(), drafter, [long], 12, num_draft=gamma, tilt=tilt)
    text = list[int]()
    for _ in range(12):
        new = torch.tensor(text, dtype=torch.int64)
        z = tiny().fresh(torch.cat([long, new]))[0][-1:]
        zq = tiny(seed=1).fresh(torch.cat([half(long), new]))[0][-1:]
        text.append(int(tilt(z, zq).argmax()))
    assert out.ids[0].tolist() == text


def test_under_a_tilt_a_row_without_a_short_prompt_reads_the_whole(tiny):
    tilt = Tilt("geometric", lam=0.5)
    drafter = RagDrafter(tiny(seed=1), lambda ids: ids, tilt, confidence=0.0)
    out = generate(tiny(), drafter, prompts(10), 8, num_draft=2, tilt=tilt)
    assert out.stats.proposed > 0


def test_no_room_and_no_confidence_do_not_change_what_is_sampled(tables, markov, chi_square):
    """Drafts that end at once still carry the logits that the tilt needs."""
    z, zq = tables
    tilt = Tilt("exact", eta=2.0)
    sampler = Sampler(1.0, generator=torch.Generator().manual_seed(4))
    unsure = RagDrafter(markov(zq), half, tilt, confidence=0.7)
    counts = counted(markov(z), unsure, sampler, tilt=tilt)
    assert chi_square(counts, joint(tilt(z, zq).softmax(-1))) < 4


# The audit.


@pytest.mark.parametrize("mode", MODES)
def test_every_token_has_its_weight_written_down(tiny, mode):
    audit = Audit()
    tilt = Tilt(mode, eta=4.0, lam=0.3, delta=0.3, audit=audit)
    given = prompts(24, 31)
    drafter = RagDrafter(tiny(seed=1), half, tilt, confidence=0.0)
    out = generate(tiny(), drafter, given, 9, num_draft=3, tilt=tilt, eos=4)
    for row, (prompt, ids) in enumerate(zip(given, out.ids, strict=True)):
        weights = audit.of(row, ids)
        assert len(weights) == len(ids)
        for i, weight in enumerate(weights):
            z = tiny().fresh(torch.cat([prompt, ids[:i]]))[0][-1:]
            zq = tiny(seed=1).fresh(torch.cat([half(prompt), ids[:i]]))[0][-1:]
            wanted = pytest.approx(float(tilt.weight(z, zq)), abs=1e-5)
            assert weight == wanted or (mode == "paper" and i > 0 and weight == 0.0), "a bonus is the target's own"


def test_an_audit_begins_anew_with_every_run(tiny):
    audit = Audit()
    tilt = Tilt("geometric", lam=0.3, audit=audit)
    drafter = RagDrafter(tiny(seed=1), half, tilt, confidence=0.0)
    for length in (24, 12):
        out = generate(tiny(), drafter, prompts(length), 5, num_draft=2, tilt=tilt)
        assert len(audit.of(0, out.ids[0])) == 5


# What is refused.


def test_prompts_that_end_differently_are_refused(tiny):
    drafter = RagDrafter(tiny(), lambda ids: ids[:-1], ending=2)
    with pytest.raises(ConfigError, match="share their last 0 tokens; accepted: at least 2"):
        drafter.reset([torch.arange(9)])
    with pytest.raises(ConfigError, match="a short prompt of"):
        RagDrafter(tiny(), lambda ids: ids[:0]).reset([torch.arange(9)])
    with pytest.raises(ConfigError, match="ending=0"):
        RagDrafter(tiny(), half, ending=0)
    with pytest.raises(ConfigError, match="confidence"):
        RagDrafter(tiny(), half, confidence=2.0)
