"""Lazy exports."""

import sys
from types import ModuleType

import pytest

from remnant.errors import MissingExtra
from remnant.lazy import attach, needs


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("remnant_fake")
    monkeypatch.setitem(sys.modules, "remnant_fake", module)
    names = {"Fraction": "fractions", "Gone": "no_such_framework", "Ours": "remnant.no_such"}
    module.__getattr__, module.__dir__ = attach("remnant_fake", names, extra="hf")  # type: ignore[method-assign]
    return module


def test_name_is_imported_on_first_use(package: ModuleType):
    assert "Fraction" not in vars(package)
    assert package.Fraction(1, 2) * 2 == 1
    assert "Fraction" in vars(package)


def test_dir_lists_what_is_offered(package: ModuleType):
    assert {"Fraction", "Gone", "Ours"} <= set(dir(package))


def test_missing_framework_names_the_extra(package: ModuleType):
    with pytest.raises(MissingExtra, match=r"no_such_framework.*pip install 'remnant\[hf\]'"):
        _ = package.Gone


def test_missing_module_of_ours_is_a_bug_and_passes(package: ModuleType):
    with pytest.raises(ModuleNotFoundError, match=r"remnant\.no_such"):
        _ = package.Ours


def test_other_names_do_not_exist(package: ModuleType):
    with pytest.raises(AttributeError, match="remnant_fake"):
        _ = package.nothing


def test_needs_without_extra_changes_nothing():
    with pytest.raises(ModuleNotFoundError), needs("", wanted_by="x"):
        import no_such_framework  # type: ignore[import-not-found]  # noqa: F401
