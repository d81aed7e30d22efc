"""Kernels for the CPU: how they are compiled, kept, and run by several threads at once.

numba compiles each kernel once, for the processor at hand, and keeps the result in memcodec's cache, in a folder that
is named after the sources of all kernels: numba alone looks at one file, and would go on with what was inlined from
another. Nothing is compiled with fast-math, so an addition stays an addition (numba contracts nothing by itself).

Threads are a `Team` of ours, not numba's: its `workqueue` ends the process when two threads enter parallel kernels at
once, and GNU OpenMP's does after a fork.
"""

import ctypes
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from memcodec.cache import cache_folder
from memcodec.errors import MachineError

F = TypeVar("F", bound=Callable[..., Any])

_FOLDERS = ("lm", "coding", "memory")  # of the package, that have kernels


@cache
def kernels_folder() -> Path:
    """Where compiled kernels of this version are kept."""
    root = Path(__file__).parent.parent
    sources = sorted(path for folder in _FOLDERS for path in (root / folder).glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return cache_folder() / "kernels" / f"{numba.__version__}-{digest[:16]}"


def subkernel(function: F) -> Any:
    """A function that only kernels call: there is no way into it from Python, which would take as long to compile."""
    return kernel(function, no_cpython_wrapper=True)


def kernel(function: F, **more: bool) -> Any:
    """Compile a function for the CPU on first use; it runs without the interpreter's lock."""
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True} | more
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(kernels_folder())
    try:
        _make_folder()
        compiled = numba.njit(cache=True, **settings)(function)
    except (OSError, RuntimeError):  # a cache that cannot be written: compile anew in every process
        compiled = numba.njit(**settings)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


_OLD = 30 * 86_400  # seconds after which kernels of another version are removed


@cache
def _make_folder() -> None:
    """The folder of this version's kernels; those of versions that nobody seems to use any more go. Raises OSError."""
    folder = kernels_folder()
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.iterdir():
            if other != folder and time.time() - other.stat().st_mtime > _OLD:
                shutil.rmtree(other, ignore_errors=True)
    folder.touch()


def are_kept() -> bool:
    """Whether some kernels of this version were compiled before."""
    return any(kernels_folder().rglob("*.nbi"))


# ---- what numba lacks

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _yield_function() -> int:
    """The address of what lets another thread run."""
    if sys.platform == "win32":
        function: Any = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


llvmlite.binding.add_symbol("memcodec_yield", _yield_function())


@intrinsic
def _let_others_run(context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(_I32, [])
        builder.call(numba.core.cgutils.get_or_insert_function(builder.module, function, "memcodec_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _count_one(context: Any, address: Any) -> Any:
    """Add one to an int64 in memory, for all threads to see; gives what it was before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "seq_cst")

    return types.int64(types.uint64), generate


@intrinsic
def _read_count(context: Any, address: Any) -> Any:
    """An int64 in memory that another thread may write."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.uint64), generate


@intrinsic
def not_inlined(context: Any) -> Any:
    """At the top of a large kernel: it is not copied into its callers, each of which would take as long to compile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def float_of(context: Any, bits: Any) -> Any:
    """The float32 that an int32 is the bits of."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def bits_of(context: Any, value: Any) -> Any:
    """The bits of a float32, as an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _I32)

    return types.int32(types.float32), generate


@intrinsic
def ones_in(context: Any, value: Any) -> Any:
    """How many bits of a uint64 are set, as an int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


_PATIENCE = 2000  # looks at a barrier, of some ten nanoseconds each, before others may run meanwhile


@subkernel
def wait_for_all(barrier, passed, workers):
    """Return when all workers have come so far. barrier: int64 [1], 0 at first; passed: how many barriers before."""
    if workers == 1:
        return
    address = barrier.ctypes.data
    goal = (passed + 1) * workers
    _count_one(address)
    checks = 0
    while _read_count(address) < goal:
        checks += 1
        if checks > _PATIENCE:
            _let_others_run()


Work = Callable[[int, int], None]


class _Round:
    """One function that all threads of a team call once."""

    def __init__(self, work: Work, workers: int) -> None:
        self.work: Work | None = work
        self.running = workers
        self.error: BaseException | None = None


class Team:
    """Threads that run one function together: each calls it with its own number and the number of all.

    A team serves one caller at a time, others take turns; after a fork, the child gets threads of its own. The caller
    is none of the threads: an interrupt ends its waiting, and leaves no thread at a barrier that another never reaches.
    """

    def __init__(self, workers: int) -> None:
        """Most callers want `team_of`: the threads stay as long as the process."""
        self.workers = workers
        self._started_in = 0  # a process
        self._round: _Round | None = None
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    def run(self, work: Work) -> None:
        """Call work(worker, workers) in each thread, and wait for all of them. Raises MachineError."""
        if self.workers == 1:
            work(0, 1)
            return
        if self._started_in != os.getpid():
            with _starting:
                if self._started_in != os.getpid():
                    self._start()
        with self._turn:
            self._finish()  # a round whose caller was interrupted
            current = _Round(work, self.workers)
            self._round = current
            self._finish()
            self._round = current.work = None  # nothing is kept alive
        if current.error is not None:
            raise current.error

    def _start(self) -> None:
        """At first, and in a forked child, which has no threads, and locks that nobody will ever release."""
        self._round = None
        self._turn, self._changed = threading.Lock(), threading.Condition()
        for worker in range(self.workers):
            args = worker, self._changed
            thread = threading.Thread(target=self._serve, args=args, daemon=True, name=f"memcodec-{worker}")
            try:
                thread.start()
            except RuntimeError as error:
                raise MachineError(f"cannot start {self.workers} threads ({error}): give fewer --threads") from error
        self._started_in = os.getpid()

    def _finish(self) -> None:
        with self._changed:
            self._changed.notify_all()
            while self._round is not None and self._round.running:
                self._changed.wait()

    def _serve(self, worker: int, changed: threading.Condition) -> None:
        done: _Round | None = None
        while True:
            with changed:
                while self._round is None or self._round is done:
                    changed.wait()
                current = done = self._round
            try:
                if current.work is not None:
                    current.work(worker, self.workers)
            except BaseException as error:  # told to the caller
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
    """The process's team of so many threads: whoever wants as many shares it."""
    return Team(workers)
