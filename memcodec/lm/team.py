"""Threads that run one kernel together.

memcodec has threads of its own, because those of numba can end the process: its `workqueue` when two threads enter
parallel kernels at the same time, and GNU OpenMP after a fork.
"""

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

from memcodec.errors import MachineError

Work = Callable[[int, int], None]
T = TypeVar("T")
R = TypeVar("R")


class _Job:
    """A function that every thread of a team calls once."""

    def __init__(self, work: Work, workers: int) -> None:
        self.work: Work | None = work
        self.running = workers
        self.error: BaseException | None = None


class Team:
    """Threads that run one function together: each calls it with its own number and the number of threads.

    A team serves one caller at a time; other callers wait for their turn. After a fork, the child starts threads of its
    own. The caller is not one of the threads, so an interrupt ends the caller's wait and leaves no thread at a barrier
    that another thread never reaches.
    """

    def __init__(self, workers: int) -> None:
        """Most callers want `team_of`, since the threads live as long as the process."""
        self.workers = workers
        self._started_in = 0  # process id
        self._job: _Job | None = None
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    def run(self, work: Work) -> None:
        """Call work(worker, workers) in every thread and wait until all have returned.

        Raises what a thread raised, and MachineError if threads cannot be started.
        """
        if self.workers == 1:
            work(0, 1)
            return
        if self._started_in != os.getpid():
            with _starting:
                if self._started_in != os.getpid():
                    self._start()
        with self._turn:
            self._wait()  # for a job whose caller was interrupted
            current = _Job(work, self.workers)
            self._job = current
            self._wait()
            self._job = current.work = None  # keep no reference to the caller's objects
        if current.error is not None:
            raise current.error

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The results of a function for several items, in order, computed side by side.

        The function should release the interpreter lock for most of its time.
        """
        if len(items) < 2:
            return [function(item) for item in items]
        found: dict[int, R] = {}
        waiting = iter(range(len(items)))  # a thread takes the next one when it is done with another

        def work(worker: int, workers: int) -> None:
            for i in waiting:
                found[i] = function(items[i])

        self.run(work)
        return [found[i] for i in range(len(items))]

    def _start(self) -> None:
        """Start the threads: on first use, and in a forked child, which has no threads and may have locked locks."""
        self._job = None
        self._turn, self._changed = threading.Lock(), threading.Condition()
        for worker in range(self.workers):
            args = worker, self._changed
            thread = threading.Thread(target=self._serve, args=args, daemon=True, name=f"memcodec-{worker}")
            try:
                thread.start()
            except RuntimeError as error:
                raise MachineError(f"cannot start {self.workers} threads ({error}): give fewer --threads") from error
        self._started_in = os.getpid()

    def _wait(self) -> None:
        """Wake the threads up, and wait until the current job, if any, has run in all of them."""
        with self._changed:
            self._changed.notify_all()
            while self._job is not None and self._job.running:
                self._changed.wait()

    def _serve(self, worker: int, changed: threading.Condition) -> None:
        """The loop of one thread."""
        done: _Job | None = None
        while True:
            with changed:
                while self._job is None or self._job is done:
                    changed.wait()
                current = done = self._job
            try:
                if current.work is not None:
                    current.work(worker, self.workers)
            except BaseException as error:  # raised again in the caller
                current.error = error
            with changed:
                current.running -= 1
                if not current.running:
                    changed.notify_all()


_starting = threading.Lock()


def _renew() -> None:
    global _starting
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


@cache
def team_of(workers: int) -> Team:
    """The team with this number of threads that all callers in the process share."""
    return Team(workers)
