"""Which process holds an episode or a distillation, and whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def owner() -> str:
    """This process, named so that a later one with the same number is another: `host:pid:start`."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start(os.getpid())}"


ANYBODY = ""
"""Owner of an episode that another process may go on with."""

WAITS = 7 * 86_400.0
"""Seconds that such an episode may wait for somebody to go on with it."""


def forsaken(name: str, opened_at: float, now: float) -> bool:
    """Whether nobody will end an episode: its process is gone, or it has waited too long for another."""
    return opened_at < now - WAITS if name == ANYBODY else alive(name) is False


def alive(name: str) -> bool | None:
    """Whether the owner still runs; None where we cannot know, as on another machine."""
    host, number, start = ["", "", *name.rsplit(":", 2)][-3:]
    if host != socket.gethostname() or not number.isdigit():
        return None
    process = int(number)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return _start(process) == start


def _start(process: int) -> str:
    """When a process started, in ticks; empty where the system does not tell."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "dead" if state in "ZX" else fields[18]
