"""Run a benchmark: `python benchmarks/run.py NAME [ARGUMENTS]`; `list` shows the names."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

from registry import BENCHMARKS, Benchmark  # noqa: E402


def main(arguments: list[str]) -> int:
    """Check the tests that belong to a benchmark, then call `main` of its module; returns an exit code."""
    known = {b.name: b for b in BENCHMARKS}
    name = arguments[0] if arguments else "list"
    if name not in known:
        listing = "\n".join(f"{b.name:<14}{b.help}" for b in BENCHMARKS)
        print(listing if name == "list" else f"unknown benchmark {name!r}; there are:\n{listing}")
        return 0 if name == "list" else 2
    rest = [a for a in arguments[1:] if a != "--no-tests"]
    helping = any(a in ("-h", "--help") for a in rest)
    if "--no-tests" not in arguments and not helping and not _tests_pass(known[name]):
        print(f"the tests of {name} fail, so it measures nothing: {' '.join(known[name].tests)}", file=sys.stderr)
        return 1
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return int(module.main(rest) or 0)


def _tests_pass(benchmark: Benchmark) -> bool:
    there = [test for test in benchmark.tests if (FOLDER.parent / test).exists()]
    if not there:
        return True
    command = [sys.executable, "-m", "pytest", "-q", "-x", *there]
    return subprocess.run(command, cwd=FOLDER.parent, stdout=sys.stderr, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
