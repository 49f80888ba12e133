"""Predicted bytes against those that tensors really take, and runs that stay inside their plan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="pip install 'remnant[hf]'")

from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

from remnant.errors import ConfigError  # noqa: E402
from remnant.speculative import Draft, MemoryModel, ModelDrafter, Plan, Refusal, Target, generate, plan  # noqa: E402
from remnant.speculative.calibration import Acceptance  # noqa: E402
from remnant.speculative.costs import Measured  # noqa: E402
from remnant.speculative.guard import GuardedTarget  # noqa: E402
from remnant.speculative.live import LiveBytes  # noqa: E402
from remnant.speculative.planner import Planner  # noqa: E402
from remnant.speculative.replan import PlannedDrafter, Replanner  # noqa: E402
from remnant.speculative.turns import Turns  # noqa: E402
from remnant.testbed import load  # noqa: E402
from remnant_hf import RemnantCache  # noqa: E402
from remnant_hf._target import ModelTarget  # noqa: E402


class Guesses:
    """Drafts that are right with a given probability: the target's own greedy answer, now and then spoilt."""

    name: ClassVar[str] = "guesses"
    vocab_size: int | None = None

    def __init__(self, answers: Sequence[Any], right: float = 0.7, seed: int = 0) -> None:
        rng = random.Random(seed)  # spoilt places belong to the text, so that every plan meets the same ones
        self._drafts = [[int(i) if rng.random() < right else (int(i) + 1) % 2048 for i in ids] for ids in answers]
        self._at: list[int] = []

    def reset(self, prompts: Sequence[Any]) -> None:
        self._at = [0] * len(prompts)

    def propose(self, limits: Sequence[int], sampler: Any = None) -> list[Draft]:
        rows = zip(self._drafts, self._at, limits, strict=True)
        return [Draft(torch.tensor(ids[at : at + limit], dtype=torch.int64)) for ids, at, limit in rows]

    def observe(self, emitted: Sequence[Any]) -> None:
        self._at = [at + len(ids) for at, ids in zip(self._at, emitted, strict=True)]

    def rollback(self, counts: Sequence[int]) -> None:
        self._at = [at - count for at, count in zip(self._at, counts, strict=True)]


@pytest.fixture(scope="module")
def testbed() -> Any:
    return load()[0]


@pytest.fixture(scope="module")
def small(testbed: Any) -> Any:
    """A drafter with the testbed's vocabulary: one layer, 32 wide."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=testbed.config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def test_live_bytes_come_and_go():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)[:5]
        assert live.now == live.peak == 4000
        c = a + 1
        assert live.now == 8000
        del a, c
        assert live.now == 4000, "a view keeps its storage"
        del b
        assert live.now == 0
        parts = torch.ones(6).split(2)
        assert live.now == 24
        del parts
    assert (live.now, live.peak) == (0, 8000)


def prompts(rows: int, length: int, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 2000, (length,), generator=generator) for _ in range(rows)]


def parameters(model: Any) -> int:
    return sum(p.nbytes for p in model.parameters())


def test_weights_are_predicted_to_the_byte(testbed: Any, small: Any):
    model = MemoryModel(testbed.config, small.config, "float32")
    assert model.target.weights == parameters(testbed)
    assert model.draft is not None
    assert model.draft.weights == parameters(small)


def test_cache_and_logits_of_a_stock_pass_are_predicted_to_the_byte(testbed: Any):
    n, length = 9, 200
    cache: Any = DynamicCache(config=testbed.config)
    ids = prompts(2, length + n)
    batch = torch.stack(ids)
    with torch.no_grad():
        testbed(batch[:, :length], past_key_values=cache, logits_to_keep=1)
        logits = testbed(batch[:, length:], past_key_values=cache).logits
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    got = MemoryModel(testbed.config, None, "float32").bytes(2, length, n, lazy_logits=False)
    assert got["kv"] == held
    assert got["logits"] == logits.nbytes


@pytest.mark.parametrize(("rows", "length", "n"), [(1, 400, 5), (1, 800, 17), (3, 600, 9)])
def test_the_engine_peaks_within_ten_percent(testbed: Any, rows: int, length: int, n: int):
    new, chunk = 24, 64
    target = ModelTarget(testbed, chunk=chunk)
    drafter = Guesses([torch.zeros(new, dtype=torch.int64)] * rows)
    with LiveBytes(testbed) as live:
        generate(target, drafter, prompts(rows, length - new), new, num_draft=n - 1)
    model = MemoryModel(testbed.config, None, "float32", chunk=chunk, host="engine")
    predicted = model.total(rows, length, n, lazy_logits=False)
    assert live.peak <= predicted <= 1.1 * live.peak


def test_a_drafter_with_weights_peaks_within_ten_percent(testbed: Any, small: Any):
    length, n, new, chunk = 500, 5, 16, 64
    target, drafter = ModelTarget(testbed, chunk=chunk), ModelDrafter(ModelTarget(small, chunk=chunk))
    with LiveBytes(testbed, small) as live:
        generate(target, drafter, prompts(1, length - new), new, num_draft=n - 1)
    model = MemoryModel(testbed.config, small.config, "float32", chunk=chunk, host="engine")
    predicted = model.total(1, length, n, lazy_logits=False)
    assert live.peak <= predicted <= 1.1 * live.peak


def test_stock_assisted_generation_peaks_within_ten_percent(testbed: Any, small: Any):
    length, new, drafted = 500, 12, 5
    small.generation_config.num_assistant_tokens = drafted
    small.generation_config.num_assistant_tokens_schedule = "constant"
    small.generation_config.assistant_confidence_threshold = 0.0
    ids = prompts(1, length - new)[0][None]
    with LiveBytes(testbed, small) as live:
        testbed.generate(ids, assistant_model=small, max_new_tokens=new, do_sample=False, eos_token_id=None)
    # The stock loop reads the whole prompt in one pass, together with the first draft.
    model = MemoryModel(testbed.config, small.config, "float32", chunk=length, host="transformers")
    predicted = model.total(1, length, drafted + 1, lazy_logits=False)
    assert predicted == pytest.approx(live.peak, rel=0.1)
    print(predicted / live.peak)


@pytest.mark.parametrize(("policy", "new_too"), [("streaming", False), ("snapkv", True)])
def test_an_evicting_cache_is_bounded_by_its_budget(testbed: Any, policy: str, new_too: bool):
    length, new, kept, block = 440, 40, 96, 32
    cache = RemnantCache(testbed.config, policy, budget=kept, prefill_block=block)
    with LiveBytes(testbed) as live:
        out = generate(ModelTarget(testbed, cache, chunk=block), None, prompts(1, length - new), new)
    budget = kept + new if new_too else kept
    model = MemoryModel(testbed.config, None, "float32", kv_budget=budget, chunk=block, host="engine")
    got = made(10**9, model, 1, length)
    assert got.kv_length == budget + block < got.L_max == length
    assert out.stats.peak_bytes <= got.bytes["kv"] + got.bytes["logits"]
    assert model.total(1, length, 1, False) == pytest.approx(live.peak, rel=0.1)


def greedy(model: Any, ids: list[Any], new: int) -> list[Any]:
    return generate(ModelTarget(model), None, ids, new).ids


def made(budget: int, model: MemoryModel, rows: int, length: int, **options: Any) -> Plan:
    got = plan(budget, model, rows, length, **options)
    assert isinstance(got, Plan)
    return got


def test_no_run_outgrows_its_plan_and_all_say_what_plain_decoding_says(testbed: Any):
    rng = random.Random(3)
    for case in range(8):
        rows, new = rng.randint(1, 3), rng.randint(2, 24)
        lengths = [rng.randint(4, 120) for _ in range(rows)]
        ids = [prompts(1, length, case)[0] for length in lengths]
        model = MemoryModel(testbed.config, None, "float32", chunk=32, host="engine")
        floor = model.total(rows, max(lengths) + new, 1, False)
        budget = floor + rng.randint(0, 400_000)
        got = made(budget, model, rows, max(lengths) + new, acceptance=Acceptance.constant(0.8, 12), max_nodes=16)
        plain = greedy(testbed, ids, new)
        target = GuardedTarget(ModelTarget(testbed, chunk=32), got)
        assert isinstance(target, Target)
        with LiveBytes(testbed) as live:
            out = generate(target, Guesses(plain, 0.8, case), ids, new, plan=got)
        assert live.peak <= got.total <= budget
        assert target.guard.peak <= got.bytes["kv"]
        assert [row.tolist() for row in out.ids] == [row.tolist() for row in plain]


def test_rejected_tokens_leave_the_cache_at_once(testbed: Any):
    new, ids = 12, prompts(1, 60)
    wrong = Guesses([torch.zeros(new, dtype=torch.int64)], right=0.0)
    target = ModelTarget(testbed)
    held: list[int] = []
    commit = target.commit

    def watched(keep: Any) -> None:
        commit(keep)
        held.append(target.nbytes())

    target.commit = watched  # type: ignore[method-assign]
    out = generate(target, wrong, ids, new, num_draft=6)
    per_token = MemoryModel(testbed.config, None, "float32").kv_per_token
    assert out.stats.proposed > out.stats.accepted == 0
    assert held == [per_token * (61 + i) for i in range(new - 1)]


def test_sixty_percent_of_a_naive_allocation_keeps_95_percent_of_its_tau(testbed: Any):
    """Naive: the model's longest text and a block of 33; measured on the same drafts."""
    new, ids = 160, prompts(1, 300, 5)
    plain = greedy(testbed, ids, new)
    model = MemoryModel(testbed.config, None, "float32")
    fixed = model.target.weights
    naive = model.total(1, testbed.config.max_position_embeddings, 33, False) - fixed
    table = Acceptance.constant(0.7, 32)
    got = made(fixed + naive * 6 // 10, model, 1, 300 + new, acceptance=table, max_nodes=33, epsilon=0.01)
    assert got.total - fixed <= 0.6 * naive
    taus = [
        generate(ModelTarget(testbed), Guesses(plain, 0.7, 9), ids, new, num_draft=32).stats.block_efficiency,
        generate(ModelTarget(testbed), Guesses(plain, 0.7, 9), ids, new, plan=got).stats.block_efficiency,
    ]
    assert got.n < 33
    assert taus[1] >= 0.95 * taus[0]


def test_what_was_not_planned_is_refused_before_it_is_computed(testbed: Any):
    model = MemoryModel(testbed.config, None, "float32")
    got = made(10**9, model, 1, 64, max_nodes=5)
    target = ModelTarget(testbed)
    guarded = GuardedTarget(target, got)
    with pytest.raises(ConfigError, match="2 rows under a plan for 1"):
        generate(guarded, None, prompts(2, 8), 4, plan=got)
    with pytest.raises(ConfigError, match="a row of up to 65"):
        guarded.prefill(prompts(1, 64))
    assert target.nbytes() == 0
    with pytest.raises(ConfigError, match="a block of 9 tokens under a plan for"):
        generate(guarded, Guesses([torch.zeros(20, dtype=torch.int64)]), prompts(1, 8), 20, num_draft=8)
    refusal = plan(1000, model, 1, 64)
    assert isinstance(refusal, Refusal)
    with pytest.raises(ConfigError, match="are missing"):
        refusal.admit([8])
    with pytest.raises(ConfigError, match="are missing"):
        generate(ModelTarget(testbed), None, prompts(1, 8), 4, plan=refusal)
    half = MemoryModel(testbed.config, None, "float16")
    with pytest.raises(ConfigError, match="under a plan for"):
        generate(GuardedTarget(ModelTarget(testbed), made(10**9, half, 1, 64)), None, prompts(1, 60), 4)


def test_limits_end_with_the_plan(testbed: Any):
    got = made(10**9, MemoryModel(testbed.config, None, "float32"), 2, 100, acceptance=Acceptance.constant(0.9, 6))
    guard = GuardedTarget(ModelTarget(testbed), got).guard
    assert got.gamma == 6
    assert guard.limits([10, 97]) == [6, 2]
    assert guard.limits([10, 100], left=[3, 9]) == [2, 0]
    assert guard.nodes([-1, 0, 0, 1], [1.0, 0.5, 0.4, 0.9]) == [0, 1, 2, 3]


def test_plans_follow_the_drafter_and_the_answer_stays(testbed: Any):
    new, ids = 48, prompts(2, 40, 8)
    plain = greedy(testbed, ids, new)
    model = MemoryModel(testbed.config, None, "float32")
    costs = Measured({1: 1.0, 9: 1.8})
    planner = Planner(model, 2, 40 + new, acceptance=Acceptance.constant(0.9, 8), costs=costs, max_nodes=9)
    for right, better in ((0.95, True), (0.0, False)):
        run = Replanner(planner, 10**9)
        start = run.plan
        assert isinstance(start, Plan)
        drafter = PlannedDrafter(Guesses(plain, right), run)
        out = generate(ModelTarget(testbed), drafter, ids, new, plan=start)
        assert [row.tolist() for row in out.ids] == [row.tolist() for row in plain]
        assert run.plans >= 2
        assert isinstance(run.plan, Plan)
        assert (run.plan.gamma > 3) == better
        assert (run.calibration.table().table[0][0] > 0.8) == better


def test_a_conversation_reads_what_is_new_and_never_outgrows_its_cache(testbed: Any):
    """One cache through six turns: cropped to what is shared, old turns dropped, answers those of a fresh cache."""
    limit, answer = 96, 8
    model = MemoryModel(testbed.config, None, "float32")
    got = made(10**9, model, 1, limit, acceptance=Acceptance.constant(0.8, 4), max_nodes=5)
    talk, cache = Turns(got.L_max, prompts(1, 10, 1)[0].tolist()), DynamicCache(config=testbed.config)
    dropped = read = 0
    for number in range(6):
        turn = talk.begin(prompts(1, 17, 50 + number)[0].tolist(), answer)
        held = cache.get_seq_length()
        cache.crop(turn.reuse - held)
        assert cache.get_seq_length() == turn.reuse
        text = torch.tensor(turn.ids)
        fresh = greedy(testbed, [text], answer)
        target = GuardedTarget(ModelTarget(testbed, cache), got)
        out = generate(target, Guesses(fresh, 0.8, number), [text], answer, plan=got, drop_finished=False).ids[0]
        assert out.tolist() == fresh[0].tolist()
        assert target.guard.peak <= (limit + got.n) * model.kv_per_token
        talk.end(out.tolist(), cached=cache.get_seq_length())
        dropped, read = dropped + turn.evicted, read + len(turn.fresh)
    assert dropped == talk.evicted > 0
    assert read < sum(len(t) for t in talk.turns) + 6 * 60
