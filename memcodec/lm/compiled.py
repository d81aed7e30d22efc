"""Kernels for the CPU: how they are compiled and where the compiled code is kept; operations that numba lacks.

numba compiles each kernel once for the processor that it runs on. The result is kept in memcodec's cache, in a folder
named after a hash of all sources that kernels are compiled from. numba itself compares only the file of the kernel,
so it would keep using old code of functions inlined from other files. Nothing is compiled with fast-math, so every
operation of a kernel is one IEEE operation (numba does not contract operations by itself).
"""

import ctypes
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from memcodec.cache import cache_folder, remove_unused
from memcodec.lm import instructions
from memcodec.lm.instructions import CHOSEN, LINE

F = TypeVar("F", bound=Callable[..., Any])

# Packages whose modules have kernels, or constants that kernels use.
_FOLDERS = ("lm", "coding", "memory", "document")


def hash_of_sources(root: Path) -> str:
    """A hash over all sources that kernels are compiled from, in hexadecimal. root: the folder of the package."""
    sources = sorted(path for folder in _FOLDERS for path in (root / folder).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


@cache
def kernels_folder() -> Path:
    """The folder of compiled kernels of this version, for the instructions that it uses."""
    sources = hash_of_sources(Path(__file__).parent.parent)
    return cache_folder() / "kernels" / f"{numba.__version__}-{CHOSEN.name}-{sources[:16]}"


def subkernel(function: F) -> Any:
    """A function that only kernels call. It has no Python wrapper, whose compilation would take as long as its own."""
    return kernel(function, no_cpython_wrapper=True)


def allocating(function: F) -> Any:
    """A kernel that makes arrays of its own."""
    return kernel(function, _nrt=True)


def kernel(function: F, **more: Any) -> Any:
    """Compile a function for the CPU when it is first called. It runs without the interpreter lock.

    Kernels allocate no arrays (but see `allocating`), so numba's counting of references to arrays is off: it would take
    most of the time of short functions.
    """
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False} | more
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(kernels_folder())
    try:
        make_folder(kernels_folder())
        compiled = numba.njit(cache=True, **settings)(function)
    except (OSError, RuntimeError):  # the cache cannot be written: compile in every process
        compiled = numba.njit(**settings)(function)
    finally:
        numba.config.CACHE_DIR = before
    return compiled


@cache
def make_folder(folder: Path) -> None:
    """Create the folder of this version's kernels, and remove those of versions unused for 30 days. Raises OSError."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        remove_unused(folder.parent, folder)
    folder.touch()


def are_kept() -> bool:
    """Whether kernels of this version have been compiled before."""
    return any(kernels_folder().rglob("*.nbi"))


# ---- operations that numba lacks

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _yield_function() -> int:
    """The address of the system's function that yields the processor to another thread."""
    if sys.platform == "win32":
        function: Any = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0


llvmlite.binding.add_symbol("memcodec_yield", _yield_function())


@intrinsic
def _yield_processor(context: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(_I32, [])
        builder.call(numba.core.cgutils.get_or_insert_function(builder.module, function, "memcodec_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _increment(context: Any, address: Any) -> Any:
    """Atomically add one to an int64 in memory; returns its value before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "seq_cst")

    return types.int64(types.uint64), generate


@intrinsic
def _load(context: Any, address: Any) -> Any:
    """Atomically load an int64 that other threads write."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.uint64), generate


@intrinsic
def not_inlined(context: Any) -> Any:
    """At the top of a large kernel: prevents inlining, which would compile it again in each of its callers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def float_of(context: Any, bits: Any) -> Any:
    """The float32 with the bits of an int32."""

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
def float_at(context: Any, address: Any) -> Any:
    """The float32 at an address: to pass on or slice an array costs more than the work on a few numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.FloatType().as_pointer()))

    return types.float32(types.uint64), generate


@intrinsic
def put_float(context: Any, address: Any, value: Any) -> Any:
    """Write a float32 to an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], ir.FloatType().as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uint64, types.float32), generate


@intrinsic
def put_byte(context: Any, address: Any, value: Any) -> Any:
    """Write an int8 to an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uint64, types.int8), generate


@intrinsic
def _fetch_line(context: Any, address: Any) -> Any:
    """Begin to bring the cache line of an address into the second cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        instructions.fetch(builder, arguments[0], LINE)
        return context.get_dummy_value()

    return types.void(types.uint64), generate


@subkernel
def fetch(address, size):
    """Begin to bring `size` bytes into the second cache."""
    for line in range(0, size, LINE):
        _fetch_line(address + np.uint64(line))


@intrinsic
def ones_in(context: Any, value: Any) -> Any:
    """The number of set bits of a uint64, int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


COUNTERS_APART = 8  # int64 of a cache line, between counters that different threads change
_SPINS = 2000  # checks of a barrier, about ten nanoseconds each, before a thread yields its processor


@subkernel
def wait_for_all(barrier, workers):
    """Return when all workers have called this function equally often. barrier: int64, the first initially 0."""
    if workers == 1:
        return
    address = barrier.ctypes.data
    goal = (_increment(address) // workers + 1) * workers
    checks = 0
    while _load(address) < goal:
        checks += 1
        if checks > _SPINS:
            _yield_processor()


@subkernel
def taken(counters, stage):
    """The number of the next unit of work of a stage, which no other worker takes. counters: see `layout.Workspace`."""
    return _increment(counters.ctypes.data + np.uint64(COUNTERS_APART * 8) * np.uint64(stage))
