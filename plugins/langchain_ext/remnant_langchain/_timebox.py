"""Work on the store with a limit of time, outside the caller's thread: a memory that hangs must not hang the agent."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

T = TypeVar("T")

MOST = 16
"""Threads at most; each has its own connection to the store, kept for the next call."""

IDLE = 30.0
"""Seconds after which a thread with nothing to do ends."""


class Timebox:
    """A few threads that end with the process, whatever they wait for.

    A job that misses its time goes on by itself; what it writes arrives late instead of never.
    """

    def __init__(self) -> None:
        """Threads start when they are needed."""
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._waiting = 0

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Begin a job."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting += 1
            more = self._waiting > self._threads and self._threads < MOST
            self._threads += more
        if more:
            threading.Thread(target=self._work, name="remnant-hook", daemon=True).start()
        self._jobs.put((future, job))
        return future

    def run(self, job: Callable[[], T], seconds: float) -> T:
        """A job's result.

        Raises:
            TimeoutError: it took longer.
        """
        future = self.submit(job)
        try:
            return future.result(seconds)
        except FutureTimeout as error:
            if future.done():
                raise
            future.cancel()
            raise TimeoutError(f"not within {seconds} s") from error

    async def arun(self, job: Callable[[], T], seconds: float) -> T:
        """`run` without blocking the event loop."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self.submit(job)), seconds)
        except asyncio.TimeoutError as error:
            raise TimeoutError(f"not within {seconds} s") from error

    def _work(self) -> None:
        while True:
            try:
                future, job = self._jobs.get(timeout=IDLE)
            except queue.Empty:
                with self._lock:
                    if self._waiting >= self._threads:  # a job was promised to this thread just now
                        continue
                    self._threads -= 1
                return
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._lock:
                    self._waiting -= 1
                del future, job  # an idle thread holds nothing of its last run
