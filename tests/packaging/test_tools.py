"""The scripts of the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def check(root: Path, folder: Path, name: str, text: str) -> subprocess.CompletedProcess[str]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    command = [sys.executable, str(root / "tools/check_files.py"), name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("k = int(n * (1 - ratio))\n", "a budget as a float product"),
        ("try:\n    x()\nexcept Exception:\n    return None\n", "a swallowed error"),
        ("def f():\n    print(1)\n", "print in a package"),
        ("x = 1", "must end with one newline"),
        ("x = 1\n\n", "must end with one newline"),
        ("# " + "x" * (1 << 20) + "\n", "bytes, at most"),
    ],
)
def test_fault_is_found(root: Path, tmp_path: Path, text: str, fault: str):
    result = check(root, tmp_path, "core/remnant/bad.py", text)
    assert result.returncode == 1
    assert fault in result.stdout


def test_clean_file_passes(root: Path, tmp_path: Path):
    result = check(root, tmp_path, "core/remnant/good.py", "budget = n * 9 // 10\n")
    assert (result.returncode, result.stdout) == (0, "")


def test_ci_script_can_be_executed(root: Path):
    assert os.access(root / ".ci/run", os.X_OK)


def test_constraints_pin_one_torch(root: Path):
    pins = [line for name in ("cpu", "newest") for line in _pins(root, name) if "torch" in line]
    assert len(pins) == 2
    assert len(set(pins)) == 1


def _pins(root: Path, name: str) -> list[str]:
    lines = (root / "constraints" / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
