"""Every kernel becomes PTX for a GPU, here, without one: the interpreter runs Python, which a compiler may refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from remnant_kernels import list_ops

CHILD = Path(__file__).with_name("compile_child.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", [op.name for op in list_ops()])
def test_compiles_for_an_h100(name: str, tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    command = [sys.executable, str(CHILD), "90", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert kernels
    assert all(kernel["ptx"] > 1000 for kernel in kernels)
