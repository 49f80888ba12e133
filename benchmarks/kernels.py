"""Every kernel against the roofline of the device, measured in the same run, and against what torch has.

    python benchmarks/run.py kernels [--quick] [--only OP ...] [--end-to-end] [--out FILE] [--chart FILE]

Correctness comes first: an operation whose providers disagree with its naive twin on small arguments reports no speed.
Each row is one provider of one operation at one batch and length: microseconds (p20, p50, p80), achieved bytes and
operations per second, the floor that the roofline sets, and the share of it that was reached. `triton` rows say whether
the target of the specification is met. On a machine without a GPU the rows compare the vectorised torch path with the
naive one, at small sizes, and say so: nothing about a GPU follows from them. A fresh GPU machine needs torch, Triton
and, for --end-to-end, transformers; nothing has to be installed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from kernels_lib import ROOT, Clock, Roofline, facts, importable, roofline

importable()

from kernels_cases import CASES, PEERS, make  # noqa: E402

from remnant_kernels import Op, get_op  # noqa: E402

Row = dict[str, Any]
RESULTS = ROOT / "benchmarks" / "results"
GPU_SIZES = tuple((b, s) for s in (4096, 32768, 131072) for b in (1, 16))
CPU_SIZES = ((1, 512), (1, 2048))
BIGGEST = 2**34
"""Bytes of keys of the largest case."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check, measure, write JSON lines, print them, draw; 1 when an operation is wrong."""
    parser = argparse.ArgumentParser(prog="run.py kernels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and the two smallest sizes")
    parser.add_argument("--only", nargs="+", default=[], choices=sorted(CASES), metavar="OP")
    parser.add_argument("--end-to-end", action="store_true", help="tokens per second of generate as well; GPU only")
    parser.add_argument("--out", type=Path, help="default: results/kernels.jsonl, or kernels-cpu.jsonl without a GPU")
    parser.add_argument("--chart", type=Path, help="default: beside it")
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(given)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = args.out or RESULTS / ("kernels.jsonl" if device == "cuda" else "kernels-cpu.jsonl")
    if device == "cpu":
        torch.set_num_threads(1)
        print("no GPU here: the vectorised torch path against the naive one, small sizes only", file=sys.stderr)
    about = facts([a for a in given if a != "--json"], device)
    rows: list[Row] = []
    for row in _measured(args, device):
        rows.append({"benchmark": "kernels", **row, **about})
        print(json.dumps(rows[-1]), flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if any("share" in row for row in rows):
        draw(rows, args.chart or out.with_suffix(".png"))
    return 1 if any("wrong" in row for row in rows) else 0


def _measured(args: Any, device: str) -> Iterator[Row]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    clock = Clock(device, 10 if args.quick or device == "cpu" else 50, 1.0 if args.quick else 2.0)
    peak = roofline(clock, dtype)
    yield {
        "op": "roofline", "bandwidth_GBps": round(peak.bandwidth / 1e9, 1), "rate_TFLOPs": round(peak.rate / 1e12, 2)
    }  # fmt: skip
    sizes = GPU_SIZES if device == "cuda" else CPU_SIZES
    for case in args.only or CASES:
        op = get_op(case.partition("+")[0])
        fault = wrong(op, device, dtype)
        if fault:
            yield {"op": case, "wrong": fault}
            continue
        for b, s in sizes[:2] if args.quick else sizes:
            if b * s * 2048 <= BIGGEST and not (op.name == "attention" and b > 1 and s > 4096):
                yield from _at(case, op, b, s, device, dtype, clock, peak)
    if args.end_to_end and device == "cuda":
        from kernels_generate import generated

        yield from generated(quick=args.quick)


def wrong(op: Op, device: str, dtype: torch.dtype) -> str:
    """What a provider gets wrong on small arguments; empty if nothing."""
    providers = ["fast", "triton"] if device == "cuda" else ["fast"]
    for seed in range(4):
        for kind in {torch.float32, dtype}:
            kwargs = op.example(seed, "odd" if seed % 2 else "small", device, kind)
            want = op.naive(**_copies(kwargs, double=True))
            for provider in providers:
                got = getattr(op, provider)(**_copies(kwargs))
                if not _agree(got, want, op.tolerance(kind)):
                    return f"{provider}, seed {seed}, {kind}"
    return ""


def _copies(kwargs: dict[str, Any], double: bool = False) -> dict[str, Any]:
    def copy(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(copy(item) for item in value)
        if not isinstance(value, torch.Tensor):
            return value
        return value.double() if double and value.is_floating_point() else value.clone()

    return {name: copy(value) for name, value in kwargs.items()}


def _agree(got: Any, want: Any, tolerance: tuple[float, float]) -> bool:
    pairs = [(got, want)] if isinstance(got, torch.Tensor) else list(zip(got, want, strict=True))
    for a, b in pairs:
        if not isinstance(a, torch.Tensor):
            continue
        same = (
            torch.allclose(a.double(), b.double(), tolerance[1], tolerance[0], equal_nan=True)
            if a.is_floating_point()
            else torch.equal(a, b)
        )
        if not same:
            return False
    return True


def _at(
    case: str, op: Op, b: int, s: int, device: str, dtype: torch.dtype, clock: Clock, peak: Roofline
) -> Iterator[Row]:
    kwargs = make(case, b, s, device, dtype)
    moved, flops = op.bytes(kwargs), op.flops(kwargs)
    floor = peak.floor(moved, flops)
    calls = _calls(case, op, kwargs, device, s)
    base: float | None = None
    for provider, call in calls.items():
        row: Row = {"op": case, "provider": provider, "batch": b, "slots": s, "dtype": str(dtype).partition(".")[2]}
        try:
            low, middle, high = clock(call)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            yield {**row, "skipped": f"{type(error).__name__}: {str(error)[:160]}"}
            continue
        base = middle if base is None else base
        row |= {"us": middle, "us_p20": low, "us_p80": high, "to_first": round(middle / base, 3)}
        row |= {"GBps": round(moved / middle / 1e3, 1), "TFLOPs": round(flops / middle / 1e6, 3)}
        if device == "cuda":
            row |= {"floor_us": round(floor, 2), "share": round(floor / middle, 3), "target": op.efficiency}
            row |= {"met": floor / middle >= op.efficiency, "large": moved >= 2**26}
        yield row
    del kwargs, calls
    if device == "cuda":
        torch.cuda.empty_cache()


def _calls(case: str, op: Op, kwargs: dict[str, Any], device: str, s: int) -> dict[str, Callable[[], Any]]:
    """Provider -> a call; the first is what the others are compared with."""
    if device == "cpu":
        found: dict[str, Callable[[], Any]] = {"fast": lambda: op.fast(**kwargs)}
        if s <= CPU_SIZES[0][1] and op.name not in ("attention", "nearest"):  # the naive ones take minutes there
            found["naive"] = lambda: op.naive(**kwargs)
    else:
        found = {"triton": lambda: op.triton(**kwargs), "eager": lambda: op.fast(**kwargs)}
        if op.name not in ("compact_paged", "attention", "fold"):  # whose sizes depend on their data
            compiled = torch.compile(op.fast, dynamic=False)
            found["compile"] = lambda: compiled(**kwargs)
    if case in PEERS:
        name, build = PEERS[case]
        found[name] = build(kwargs)
    return found


def draw(rows: Sequence[Row], out: Path) -> None:
    """The share of the roofline that each kernel reached at its largest size, beside its target."""
    try:
        import matplotlib
    except ImportError:
        print("no chart: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    best: dict[str, Row] = {row["op"]: row for row in rows if row.get("provider") == "triton" and "share" in row}
    names = list(best)
    figure, axes = plt.subplots(figsize=(9, 0.4 * len(names) + 1.2), layout="constrained")
    axes.barh(names, [best[name]["share"] for name in names], color="tab:blue", label="reached")
    axes.plot([best[name]["target"] for name in names], names, "k|", markersize=12, label="target")
    axes.set(xlabel="share of the roofline, largest size", xlim=(0, 1), title=str(rows[0].get("device")))
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
