"""The claims and the chart of `benchmarks/` on rows made by hand, and the cells that they need."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from remnant.kv import list_policies
from remnant.testbed.evaluate import with_defaults

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not FOLDER.is_dir():
        pytest.skip("needs the folder benchmarks of a clone")
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("claims", "registry", "plot_quality"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module


def row(task: str, policy: str, accuracy: float, budget: float = 0.1, **options: Any) -> dict[str, Any]:
    return {"task": task, "policy": policy, "budget": budget, "options": with_defaults(task, policy, options),
            "accuracy": accuracy, "kept_fraction": budget}  # fmt: skip


def found(modules: Any, rows: list[dict[str, Any]], part: str) -> bool | None:
    claims = modules("claims")
    (each,) = [c for c in claims.claims(claims.Table(rows)) if part in c[0]]
    return claims._checked(*each).holds


@pytest.mark.parametrize(
    ("lazy", "h2o", "holds"), [(0.9, 0.8, True), (0.8, 0.8, False), (0.7, 0.8, False), (1.0, 1.0, True)]
)
def test_recurrence_wants_more_than_h2o_or_a_full_score(modules: Any, lazy: float, h2o: float, holds: bool):
    rows = [row("recurrence-rare", p, x) for p, x in (("lazyeviction", lazy), ("h2o", h2o), ("tova", 0.1))]
    rows.append(row("recurrence-rare", "full", 1.0, 1.0))
    assert found(modules, rows, "10%, recurrence-rare") is holds
    assert found(modules, rows, "25%, recurrence-rare") is None


@pytest.mark.parametrize(("default", "equal", "holds"), [(0.8, 0.7, True), (0.95, 0.7, False), (0.8, 0.9, False)])
def test_trimkv_must_lead_with_and_without_slack(modules: Any, default: float, equal: float, holds: bool):
    rows = [row("recall", "trimkv", 0.9), row("recall", "keydiff", default), row("recall", "keydiff", equal, slack=0)]
    assert found(modules, rows, "trimkv leads") is holds


def test_every_policy_of_the_recurrence_claims_is_measured(modules: Any):
    cells = {(c.task, c.policy, c.budget) for c in modules("registry").cells(list_policies())}
    for task in ("recurrence", "recurrence-rare"):
        assert (task, "full", 1.0) in cells
        for policy in ("lazyeviction", "h2o", "tova"):
            assert {(task, policy, b) for b in (0.1, 0.25, 0.5)} <= cells


def test_the_chart_shows_no_variants(modules: Any):
    rows = [row("recall", "keydiff", 0.9), row("recall", "keydiff", 0.8, slack=0), row("recall", "trimkv", 0.7)]
    assert [each["accuracy"] for each in modules("plot_quality").usual(rows)] == [0.9, 0.7]
