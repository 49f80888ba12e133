"""What holds for every drafter that can be made by name, and for the names that the package exports."""

from __future__ import annotations

import inspect
import pkgutil
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import remnant.speculative as package  # noqa: E402
from remnant.speculative import Drafter, Sampler, generate, get_drafter, list_drafters  # noqa: E402
from remnant.speculative.drafter import drafter_registry  # noqa: E402

VOCAB = 23
PROMPTS = [torch.tensor([3, 1, 4, 3, 1, 4, 3, 1]), torch.tensor([9]), torch.tensor([2, 6, 5, 2, 6, 5])]


@pytest.fixture(params=list_drafters())
def drafter(request: Any, tiny: Any) -> Any:
    """Made with its defaults, and a small model, and a shorter prompt, where it takes them."""
    wants = inspect.signature(drafter_registry.get(request.param)).parameters
    options: dict[str, Any] = {"model": tiny(VOCAB, seed=4, layers=1), "shorten": lambda ids: ids[-3:]}
    return get_drafter(request.param, **{name: value for name, value in options.items() if name in wants})


def nothing() -> Any:
    return torch.zeros(0, dtype=torch.int64)


def test_it_keeps_to_its_limits(drafter):
    assert isinstance(drafter, Drafter)
    drafter.reset(PROMPTS)
    for limits in ([4, 0, 2], [0, 0, 0], [1, 9, 1]):
        drafts = drafter.propose(limits)
        assert all(len(draft) <= limit for draft, limit in zip(drafts, limits, strict=True))
        for draft in drafts:
            assert draft.q is None
            assert bool(((draft.ids >= 0) & (draft.ids < VOCAB)).all())
        drafter.observe([torch.tensor([5]), nothing(), torch.tensor([2, 6])])


def test_rows_do_not_see_each_other(drafter):
    drafter.reset(PROMPTS)
    drafter.observe([torch.tensor([4]), torch.tensor([1]), torch.tensor([2])])
    together = [draft.ids.tolist() for draft in drafter.propose([4, 4, 4])]
    for row, prompt in enumerate(PROMPTS):
        drafter.reset([prompt])
        drafter.observe([torch.tensor([(4, 1, 2)[row]])])
        assert drafter.propose([4])[0].ids.tolist() == together[row]


def test_tokens_that_are_taken_back_never_were(drafter):
    drafter.reset(PROMPTS)
    drafter.observe([torch.tensor([4]), torch.tensor([1]), torch.tensor([2])])
    want = [draft.ids.tolist() for draft in drafter.propose([4, 4, 4])]
    drafter.observe([torch.tensor([7, 8]), torch.tensor([8]), nothing()])
    drafter.rollback([2, 1, 0])
    assert [draft.ids.tolist() for draft in drafter.propose([4, 4, 4])] == want


@pytest.mark.parametrize("history", [(), (lambda before, scores: scores - 0.1 * (before[0, -1] % 2),)])
def test_the_output_is_that_of_plain_decoding(drafter, tiny, history):
    model = tiny(VOCAB)
    want = [model.greedy(prompt, 20) for prompt in PROMPTS]
    got = generate(model, drafter, PROMPTS, 20, Sampler(0.0, processors=history), num_draft=5)
    assert [row.tolist() for row in got.ids] == want


def test_every_export_resolves_and_no_module_takes_its_name():
    """Importing a submodule sets it on the package, in the place of an export of that name."""
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
