"""Threads that work off parts of one piece of work side by side, with the same results as one thread.

Threads do instead of processes where the work is compiled code that does not hold Python's lock: nothing is copied or
sent, and there is one copy of every profile and model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from paywarden.schemas.errors import Misconfigured

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")

# Far beyond any machine; a number that was meant for something else is noticed.
THREADS_MAX = 1024


class ThreadPool:
    """So many threads; one works in the caller's own."""

    def __init__(self, threads: int = 1) -> None:
        """Starts no thread before there is work. Raises Misconfigured for a number there cannot be."""
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
        """The results in the order of the parts. Raises what the first of them raises, once none is at work."""
        if self._pool is None:
            return [work(part) for part in parts]
        return [one.result() for one in self._all_done([self._pool.submit(work, part) for part in parts])]

    def beside(self, work: Callable[[], ResultT]) -> Callable[[], ResultT]:
        """Begin a piece of work; the call that comes back waits for its result."""
        if self._pool is None:
            result = work()
            return lambda: result
        return self._pool.submit(work).result

    @staticmethod
    def _all_done(futures: list[Future[ResultT]]) -> list[Future[ResultT]]:
        # The parts share arrays with the caller, who must not go on while any is written to.
        for future in futures:
            future.exception()
        return futures
