"""Lazy logits in the loop: the head is asked for one column per row and level, and tokens stay what they were."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import pytest

torch = pytest.importorskip("torch")

from remnant.errors import ConfigError  # noqa: E402
from remnant.speculative import Draft, ModelDrafter, Sampler, Tree, draw, generate, residual_det  # noqa: E402
from remnant.speculative.guard import GuardedTarget  # noqa: E402
from remnant.speculative.memory_model import MemoryModel  # noqa: E402
from remnant.speculative.planner import Planner, plan  # noqa: E402
from remnant.speculative.target import LazyTarget  # noqa: E402

V, ROWS = 3, 7000
"""Rows of three tokens: 21,000 draws."""
CONFIG: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 3, "vocab_size": 10, "torch_dtype": "float32",
}  # fmt: skip


class Lazy:
    """Any target of the tests with its head left; notes what is asked of it."""

    def __init__(self, target: Any) -> None:
        self.target, self.asked, self.read, self.ready = target, [], 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def defer(self) -> None:
        self.ready = True

    def prefill(self, prompts: Any) -> Any:
        self.read += 1
        return self.target.prefill(prompts)

    def step_lazy(self, tokens: Any, positions: Any, widths: Any, mask: Any = None) -> Any:
        assert self.ready
        z = self.target.step(tokens, positions, widths, mask)
        level = [(row, 0) for row in range(len(z))]
        self.asked.append([level])

        def head(rows: Any, columns: Any) -> Any:
            assert (columns < widths[rows]).all(), "a column that is not there"
            self.asked[-1].append(list(zip(rows.tolist(), columns.tolist(), strict=True)))
            return z[rows, columns]

        return z[:, 0], head


def pair(make: Any, drafter: Any, prompts: Any, new: int, sampler: Any = None, **more: Any) -> tuple[Any, Any, Any]:
    """Eager and lazy output of one run, and the lazy target."""
    eager = generate(make(), drafter(), prompts, new, sampler and sampler(), **more)
    target = Lazy(make())
    assert isinstance(target, LazyTarget)
    lazy = generate(target, drafter(), prompts, new, sampler and sampler(), lazy_logits=True, **more)  # type: ignore[arg-type]
    return eager, lazy, target


def texts(rows: int, vocab: int, seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (5 + 3 * i,), generator=generator) for i in range(rows)]


def shape(_: int, limit: int) -> list[int]:
    """Two children per node."""
    return [-1, *((i - 1) // 2 for i in range(1, min(limit, 6) + 1))]


@pytest.mark.parametrize("grown", [None, shape])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("eos", [(), (3, 5)])
def test_greedy_tokens_are_those_of_eager_logits(tiny: Any, oracle: Any, grown: Any, rows: int, eos: tuple[int, ...]):
    prompts = texts(rows, 23, seed=1)
    answers = [tiny().greedy(prompt, 20, eos) for prompt in prompts]
    make = lambda: oracle(answers, 23, wrong=0.2, shape=grown)  # noqa: E731
    eager, lazy, target = pair(tiny, make, prompts, 20, num_draft=6, eos=eos)
    assert [ids.tolist() for ids in lazy.ids] == [ids.tolist() for ids in eager.ids] == answers
    assert (lazy.stats.passes, lazy.stats.accepted) == (eager.stats.passes, eager.stats.accepted)
    assert eager.stats.accepted > 5 or eos
    for levels in target.asked:  # every level asks each row at most once, and only for rows that came that far
        for before, level in pairwise(levels):
            assert {row for row, _ in level} <= {row for row, _ in before}
            assert len({row for row, _ in level}) == len(level)
    heads = sum(len(level) for levels in target.asked for level in levels)
    assert lazy.stats.passes + lazy.stats.accepted <= heads <= lazy.stats.passes + lazy.stats.accepted + 6 * rows


@pytest.mark.parametrize("kind", ["named", "drawn", "det", "iid", "without_replacement"])
def test_one_seed_gives_the_tokens_of_eager_logits(tables: Any, markov: Any, kind: str):
    """The bits of the logits are equal here, so the same uniforms decide the same."""
    z, zq = tables

    def drafter() -> Any:
        return _drafter(kind, zq, markov)

    def sampler() -> Any:
        return Sampler(0.9, generator=torch.Generator().manual_seed(4))

    prompts = torch.zeros(40, 1, dtype=torch.int64)
    eager, lazy, _ = pair(lambda: markov(z), drafter, prompts, 25, sampler, num_draft=6)
    assert [ids.tolist() for ids in lazy.ids] == [ids.tolist() for ids in eager.ids]
    assert lazy.stats.accepted == eager.stats.accepted > 20


@pytest.mark.parametrize(
    "kind",
    ["named", "iid", *(pytest.param(k, marks=pytest.mark.slow) for k in ("drawn", "det", "without_replacement"))],
)
def test_draws_are_the_targets(tables: Any, markov: Any, chi_square: Any, kind: str):
    z, zq = tables
    prompts = torch.zeros(ROWS, 1, dtype=torch.int64)
    sampler = Sampler(generator=torch.Generator().manual_seed(6))
    out = generate(Lazy(markov(z)), _drafter(kind, zq, markov), prompts, 3, sampler, num_draft=6, lazy_logits=True)  # type: ignore[arg-type]
    ids, p = torch.stack(out.ids), z.softmax(-1)
    counts = torch.bincount(ids[:, 0] * V * V + ids[:, 1] * V + ids[:, 2], minlength=V**3)
    assert chi_square(counts, ROWS * (p[0][:, None, None] * p[:, :, None] * p[None, :, :]).flatten()) < 4
    assert 0 < out.stats.accepted < out.stats.proposed


def test_processors_see_the_path(tiny: Any, oracle: Any):
    """A penalty on what was written, drafted tokens included, row by row and in trees."""

    def process(history: Any, row: Any) -> Any:
        return row.index_add(1, history[0], torch.full(history.shape, -1.5, dtype=row.dtype))

    prompts = texts(2, 23, seed=2)
    answers = [tiny().greedy(prompt, 15, (), process) for prompt in prompts]
    for grown in (None, shape):
        make = lambda grown=grown: oracle(answers, 23, wrong=0.2, shape=grown)  # noqa: E731
        sampler = lambda: Sampler(0.0, processors=[process])  # noqa: E731
        _, lazy, _ = pair(tiny, make, prompts, 15, sampler, num_draft=6)
        assert [ids.tolist() for ids in lazy.ids] == answers


def test_a_sampler_without_best_is_asked_for_probabilities(tiny: Any, oracle: Any):
    class Plain:
        greedy, generator = True, None

        def probs(self, history: Any, logits: Any) -> Any:
            assert len(logits) == 1
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()

    prompts = texts(2, 23, seed=3)
    answers = [tiny().greedy(prompt, 12) for prompt in prompts]
    for grown in (None, shape):
        out = generate(Lazy(tiny()), oracle(answers, 23, shape=grown), prompts, 12, Plain(), lazy_logits=True)  # type: ignore[arg-type]
        assert [ids.tolist() for ids in out.ids] == answers


def test_a_plan_counts_on_it(tiny: Any, oracle: Any, monkeypatch: pytest.MonkeyPatch):
    """It is switched on by the plan, also behind a guard; what cannot do it is refused before anything is read."""
    memory = MemoryModel(CONFIG)
    made: Any = plan(10**6, memory, 2, 40, lazy_logits=True)
    prompts = texts(2, 23, seed=4)
    answers = [tiny().greedy(prompt, 10) for prompt in prompts]
    target = Lazy(tiny())
    out = generate(target, oracle(answers, 23), prompts, 10, plan=made)  # type: ignore[arg-type]
    assert [ids.tolist() for ids in out.ids] == answers
    assert target.asked
    plain = Lazy(tiny())
    with pytest.raises(ConfigError, match="counts on lazy logits"):
        generate(plain, oracle(answers, 23), prompts, 10, plan=made, lazy_logits=False)  # type: ignore[arg-type]
    assert not plain.read
    for bare in (tiny(), GuardedTarget(tiny(), made)):
        monkeypatch.setattr(bare, "prefill", lambda _: pytest.fail("a prompt was read"))
        with pytest.raises(ConfigError, match="from a Tiny"):
            generate(bare, oracle(answers, 23), prompts, 10, plan=made)
    with pytest.raises(ConfigError, match="with a tilt"):
        generate(Lazy(tiny()), oracle(answers, 23), prompts, 10, tilt=lambda z, zq: z, lazy_logits=True)  # type: ignore[arg-type]


def test_a_host_that_cannot_is_not_planned_for():
    with pytest.raises(ConfigError, match="host 'transformers'"):
        Planner(MemoryModel(CONFIG, host="transformers"), lazy_logits=True)


def _drafter(kind: str, zq: Any, markov: Any) -> Any:
    if kind not in ("named", "drawn"):
        return Branching(zq.softmax(-1), kind, 2)
    drafter: Any = ModelDrafter(markov(zq))
    if kind == "named":
        real = drafter.propose
        drafter.propose = lambda limits, _: real(limits, None)
    return drafter


class Branching:
    """Two children per node, found as the mode says, two levels deep."""

    name: ClassVar[str] = "branching"
    vocab_size = V

    def __init__(self, q: Any, mode: Any, seed: int) -> None:
        self.q, self.mode, self.r = q, mode, torch.Generator().manual_seed(seed)
        self.last: list[int] = []

    def reset(self, prompts: Any) -> None:
        self.last = [int(prompt[-1]) for prompt in prompts]

    def propose(self, limits: Any, sampler: Any = None) -> Any:
        return [self.grown(root, limit) for root, limit in zip(self.last, limits, strict=True)]

    def grown(self, root: int, limit: int) -> Any:
        ids, parent = [root], [-1]
        while len(ids) < min(limit, 6) + 1:
            above = (len(ids) - 1) // 2
            q = self.q[ids[above]]
            if self.mode == "without_replacement" and len(ids) % 2 == 0:
                q = residual_det(q, torch.tensor(ids[-1]))
            ids.append((len(ids) - 1) % 2 if self.mode == "det" else int(draw(q, torch.rand((), generator=self.r))))
            parent.append(above)
        q_full = None if self.mode == "det" else self.q[torch.tensor(ids)]
        tree = Tree.of(torch.tensor(ids), torch.tensor(parent), q_full=q_full)
        return Draft(tree.ids[1:], tree=tree, mode=self.mode)

    def observe(self, emitted: Any) -> None:
        self.last = [int(new[-1]) if len(new) else old for old, new in zip(self.last, emitted, strict=True)]

    def rollback(self, counts: Any) -> None: ...


@pytest.fixture(scope="module")
def tables() -> Any:
    """Logits of a target and of a drafter, `[V, V]`."""
    r = torch.Generator().manual_seed(0)
    return torch.randn(V, V, generator=r, dtype=torch.float64), torch.randn(V, V, generator=r, dtype=torch.float64)
