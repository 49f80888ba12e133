"""mem0, langmem and LangGraph's stores in an environment of their own: they bring much that Remnant does not need.

The environment is layered over the one that runs this, so that numpy and LangGraph are the very same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["ENV", "QUIET", "build", "missing"]

ROOT = Path(__file__).parents[1]
ENV = ROOT / ".bench-env-memory"
QUIET = {
    "MEM0_TELEMETRY": "False", "ANONYMIZED_TELEMETRY": "False", "LANGSMITH_TRACING": "false", "OPENAI_API_KEY": "none",
    "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""No telemetry; the key is asked for when mem0 is made, and never used; one thread for each product of matrices."""

_WANTED = (
    "mem0ai==2.2.1", "qdrant-client==1.20.0", "faiss-cpu==1.15.1", "langmem==0.0.30",
    "langgraph-checkpoint-sqlite==3.1.2", "pysqlite3-binary==0.5.4.post2",
)  # fmt: skip


def build() -> None:
    """Make the environment; a few minutes and some downloads.

    Raises:
        subprocess.CalledProcessError: a step failed; pip has said why.
    """
    python = ENV / "bin" / "python"
    pip = [str(python), str(Path(sys.prefix) / "bin" / "pip"), "--disable-pip-version-check", "install"]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(ENV)], check=True)
    subprocess.run([str(python), str(ROOT / "tools" / "layer_env.py"), sys.prefix], check=True)
    subprocess.run([*pip, *_WANTED], check=True)


def missing() -> str:
    """Why the comparison cannot run, or an empty string."""
    python = ENV / "bin" / "python"
    if not python.is_file():
        return f"no environment {ENV.name}; build it with --peers build"
    probe = "import mem0, langmem, faiss, langgraph.store.sqlite"
    done = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, env={**os.environ, **QUIET})
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it does not start"])[-1]
