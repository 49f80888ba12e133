"""A small random layer, seen as a policy sees it."""

import pytest


def _make_view(s=24, b=1, h=2, g=2, d=8, w=None, starts=None, seed=0, **more):
    """Keys, values and the `w` newest queries of `s` tokens; `starts` are the lengths of left padding per row."""
    import torch

    from remnant.kv.view import KVView

    r = torch.Generator().manual_seed(seed)
    positions = torch.arange(s).expand(b, h, s)
    if starts is not None:
        begin = torch.tensor(starts)
        more = {"valid": positions >= begin.view(-1, 1, 1), "state": {"start": begin}, **more}
    fields = {
        "k": torch.randn(b, h, s, d, generator=r),
        "v": torch.randn(b, h, s, d, generator=r),
        "positions": positions,
        "seen": s,
        "queries": None if w is None else torch.randn(b, g * h, w, d, generator=r),
    }
    return KVView(**{**fields, **more})


@pytest.fixture(scope="session")
def make_view():
    """The factory, as a fixture so that every module shares it."""
    return _make_view


def _by_loops(function, *arguments, **options):
    """The result of a function of `remnant.kv` whose operations run as `naive.py` has them: slow, and the truth."""
    from remnant_kernels import dispatch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(dispatch.FORCE, "naive")
        dispatch.forget()
        try:
            return function(*arguments, **options)
        finally:
            dispatch.forget()


@pytest.fixture(scope="session")
def by_loops():
    """The caller, as a fixture so that every module shares it."""
    return _by_loops
