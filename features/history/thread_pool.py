"""Threads that share the parts of one task, with the same results as one thread.

Threads are enough instead of processes if the work is compiled code that releases Python's lock (the GIL). Nothing is
copied or sent, and there is one copy of every profile and model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from paywarden.schemas.errors import Misconfigured

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")

# More than any machine has. The limit catches a number that was meant for another setting.
THREADS_MAX = 1024


class ThreadPool:
    """`threads` threads. With one, the work runs in the caller's own thread."""

    def __init__(self, threads: int = 1) -> None:
        """Starts no thread before there is work. Raises Misconfigured for a number out of bounds."""
        if not 1 <= threads <= THREADS_MAX:
            raise Misconfigured(f"threads: wanted 1 to {THREADS_MAX}, got {threads}")
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crew") if threads > 1 else None

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[PartT], ResultT], parts: Iterable[PartT]) -> list[ResultT]:
        """Returns the results in the order of the parts. Raises the first part's error, after all parts have ended."""
        if self._pool is None:
            return [work(part) for part in parts]
        return [future.result() for future in self._all_done([self._pool.submit(work, part) for part in parts])]

    def beside(self, work: Callable[[], ResultT]) -> Callable[[], ResultT]:
        """Start a task in the background; the returned function waits for its result."""
        if self._pool is None:
            result = work()
            return lambda: result
        return self._pool.submit(work).result

    @staticmethod
    def _all_done(futures: list[Future[ResultT]]) -> list[Future[ResultT]]:
        # The parts write to arrays of the caller, so the caller must not go on before all have ended.
        for future in futures:
            future.exception()
        return futures
