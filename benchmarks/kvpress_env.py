"""kvpress 0.5.5 in an environment of its own, because it needs transformers below 5.3.

The environment is layered over the one that runs this, so that torch is the very same and is not installed twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["ENV", "Process", "build", "missing"]

ROOT = Path(__file__).parents[1]
ENV = ROOT / ".bench-env-kvpress"
_WANTED = ("kvpress==0.5.5", "transformers<5.3")


def build() -> None:
    """Make the environment; a few minutes and some downloads.

    Raises:
        subprocess.CalledProcessError: a step failed; pip has said why.
    """
    import torch

    python = ENV / "bin" / "python"
    pip = [str(python), str(Path(sys.prefix) / "bin" / "pip"), "--disable-pip-version-check", "install"]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(ENV)], check=True)
    subprocess.run([str(python), str(ROOT / "tools" / "layer_env.py"), sys.prefix], check=True)
    subprocess.run([*pip, f"torch=={torch.__version__.split('+')[0]}", *_WANTED], check=True)


def missing() -> str:
    """Why the comparison cannot run, or an empty string."""
    if not (ENV / "bin" / "python").is_file():
        return f"no environment {ENV.name}; build it with --kvpress build"
    probe = "import kvpress, transformers; print(transformers.__version__)"
    done = subprocess.run([str(ENV / "bin" / "python"), "-c", probe], capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it does not start"])[-1]


class Process:
    """A worker in some environment: one request, one answer."""

    def __init__(self, python: str) -> None:
        """Start it."""
        worker = str(Path(__file__).with_name("speed_worker.py"))
        self.process = subprocess.Popen(
            [python, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Send a request and wait.

        Raises:
            RuntimeError: the worker could not do it; says why.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"fault": "the worker ended"}
        if "fault" in answer:
            raise RuntimeError(answer["fault"])
        return answer

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
