"""The instructions that multiply 8-bit integers on this processor, as LLVM code.

An instruction set adds the products of four bytes of a row and four bytes of each column to 32-bit sums. All sets
return the same integers:

- `avx512-vnni`, `avx-vnni`: vpdpbusd, unsigned times signed bytes, in vectors of 64 and 32 bytes.
- `amx`: tiles (see `amx`) where there are 16 rows or more, otherwise `avx512-vnni`. The tests have not run with it on a
  processor that has it, so it is used only if it is asked for.
- `neon-sdot`: sdot, signed times signed bytes, in vectors of 16 bytes.
- `vectors`: both sides extended to 16 bits, and LLVM's choice of an instruction that multiplies pairs of them and adds
  the two products (pmaddwd, smlal). pmaddubsw, which needs no extension, would saturate.

The set is chosen when this module is imported, by what the processor has. The variable MEMCODEC_INSTRUCTIONS names
another one, for tests and measurements; one that the processor lacks is ignored. The self-test checks the set, and if
it fails, `product.multiply` multiplies one pair at a time ("plain").
"""

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir

_I8, _I16, _I32 = (ir.IntType(bits) for bits in (8, 16, 32))

# The right-hand side of a product is stored in panels (see `product`).
QUAD = 4  # consecutive entries of the inner dimension that are multiplied together
COLUMNS = 32  # of a panel
PANEL_ROW = COLUMNS * QUAD  # bytes of a quad of all columns
PANELS_AHEAD = 2  # that are fetched from memory while a panel is multiplied
LINE = 64  # bytes of a cache line


@dataclass(frozen=True)
class Instructions:
    """An instruction set. width: bytes of a vector; rows: numbers of rows of its tiles, the largest first.

    columns: of a tile, so that the sums of its rows and columns fill the registers. amx: the prefix of the functions
    that stand for the instructions of AMX, which multiply 16 rows or more; empty if it is not used.
    """

    name: str
    width: int
    columns: int
    rows: tuple[int, ...]
    amx: str = ""

    @property
    def lanes(self) -> int:
        """32-bit sums in a vector."""
        return self.width // 4

    @property
    def sums(self) -> int:
        """Vectors of sums of a row of a tile while products are added."""
        return self.columns * QUAD // self.width

    def zero(self) -> ir.Constant:
        """A vector of sums before the first product."""
        return ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)

    def load_row(self, b: Any, address: Any, unsigned: bool) -> Any:
        """Four bytes of a row, in every lane."""
        loaded = b.load(b.inttoptr(address, _I32.as_pointer()))
        loaded.align = 1
        vector = ir.VectorType(_I32, self.lanes)
        first = b.insert_element(ir.Constant(vector, ir.Undefined), loaded, ir.Constant(_I32, 0))
        return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), self.zero())

    def load_columns(self, b: Any, address: Any, unsigned: bool) -> Any:
        """Four bytes of each of some columns."""
        loaded = b.load(b.inttoptr(address, ir.VectorType(_I32, self.lanes).as_pointer()))
        loaded.align = 1
        return loaded

    def dot(self, b: Any, sums: Any, row: Any, columns: Any, unsigned_row: bool) -> Any:
        """Sums plus the products of what was loaded. One of the two has unsigned bytes."""
        vector = ir.VectorType(_I32, self.lanes)
        name = f"llvm.x86.avx512.vpdpbusd.{8 * self.width}"
        function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(vector, [vector] * 3), name)
        return b.call(function, [sums, row, columns] if unsigned_row else [sums, columns, row])


class SignedDot(Instructions):
    """Products of signed bytes, by an instruction of ARM: 128 is taken from unsigned bytes when they are loaded."""

    def load_row(self, b: Any, address: Any, unsigned: bool) -> Any:
        loaded = super().load_row(b, address, unsigned)
        return b.xor(loaded, self.lowest()) if unsigned else loaded

    def load_columns(self, b: Any, address: Any, unsigned: bool) -> Any:
        loaded = super().load_columns(b, address, unsigned)
        return b.xor(loaded, self.lowest()) if unsigned else loaded

    def lowest(self) -> ir.Constant:
        """-128 in every byte: the lowest byte, which is an unsigned zero less 128."""
        return ir.Constant(ir.VectorType(_I32, self.lanes), [0x80808080] * self.lanes)

    def dot(self, b: Any, sums: Any, row: Any, columns: Any, unsigned_row: bool) -> Any:
        # With LLVM's intrinsic, the process ends if LLVM does not know that the processor has the instruction, which it
        # does not know of many. The assembler can be told that the processor has it.
        code = ".arch_extension dotprod\nsdot $0.4s, $2.16b, $3.16b"
        return b.asm(ir.FunctionType(sums.type, [sums.type] * 3), code, "=w,0,w,w", [sums, row, columns], False)


class Extended(Instructions):
    """Products of 16-bit integers: those of the even bytes of all quads, and those of the odd bytes."""

    def load_row(self, b: Any, address: Any, unsigned: bool) -> Any:
        """As in the base class, but a pair of vectors: the even and the odd bytes, extended to 16 bits."""
        return self._extended(b, super().load_row(b, address, unsigned), unsigned)

    def load_columns(self, b: Any, address: Any, unsigned: bool) -> Any:
        """As in the base class, but a pair of vectors: the even and the odd bytes, extended to 16 bits."""
        return self._extended(b, super().load_columns(b, address, unsigned), unsigned)

    def _extended(self, b: Any, quads: Any, unsigned: bool) -> tuple[Any, Any]:
        """The even and the odd bytes."""
        pairs = b.bitcast(quads, ir.VectorType(_I16, self.width // 2))
        byte = ir.Constant(pairs.type, [8] * pairs.type.count)
        shift = b.lshr if unsigned else b.ashr
        return shift(b.shl(pairs, byte), byte), shift(pairs, byte)

    def dot(self, b: Any, sums: Any, row: Any, columns: Any, unsigned_row: bool) -> Any:
        wide = ir.VectorType(_I32, self.width // 2)
        for left, right in zip(row, columns, strict=True):  # no entry is above 255, so both are signed here
            products = b.mul(b.sext(left, wide), b.sext(right, wide))
            first, second = (
                b.shuffle_vector(products, ir.Constant(wide, ir.Undefined), ir.Constant(sums.type, lanes))
                for lanes in (list(range(0, wide.count, 2)), list(range(1, wide.count, 2)))
            )
            sums = b.add(sums, b.add(first, second))
        return sums


def fetch(b: Any, address: Any, size: int) -> None:
    """Begin to bring `size` bytes into the second cache. Addresses beyond the end do no harm."""
    pointer, name = ir.PointerType(_I8), "llvm.prefetch.p0"
    kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
    function = b.module.globals.get(name) or ir.Function(b.module, kind, name)
    for line in range(0, size, LINE):
        at = b.inttoptr(b.add(address, ir.Constant(address.type, line)), pointer)
        b.call(function, [at, *(ir.Constant(_I32, x) for x in (0, 2, 1))])


ALL: dict[str, Instructions] = {
    "avx512-vnni": Instructions("avx512-vnni", 64, 32, (12, 8, 6, 4, 3, 2, 1)),
    "amx": Instructions("amx", 64, 32, (12, 8, 6, 4, 3, 2, 1), "llvm.x86."),
    "avx-vnni": Instructions("avx-vnni", 32, 16, (6, 4, 3, 2, 1)),
    "neon-sdot": SignedDot("neon-sdot", 16, 16, (6, 4, 3, 2, 1)),
    "vectors-64": Extended("vectors-64", 64, 32, (8, 6, 4, 3, 2, 1)),
    "vectors-32": Extended("vectors-32", 32, 16, (4, 3, 2, 1)),
    "vectors-16": Extended("vectors-16", 16, 8, (4, 3, 2, 1)),
}


_NEEDS = {
    "avx512-vnni": {"avx512vnni", "avx512bw"},
    "amx": {"avx512vnni", "avx512bw", "amx-tile", "amx-int8"},
    "avx-vnni": {"avxvnni", "avx2"},
    "neon-sdot": {"dotprod"},
    "vectors-64": {"avx512bw"},
    "vectors-32": {"avx2"},
    "vectors-16": set[str](),
}


def _features() -> set[str]:
    """The features of this processor that numba uses. Environment variables of numba can make it use fewer."""
    if numba.config.CPU_NAME:  # it compiles for another processor
        return set()
    text = numba.config.CPU_FEATURES
    if text is None:
        text = numba.core.codegen.get_host_cpu_features()
    found = {feature[1:] for feature in text.split(",") if feature.startswith("+")}
    return found | {"dotprod"} if _has_sdot() else found


_HWCAP, _HWCAP_ASIMDDP = 16, 1 << 20  # of Linux on 64-bit ARM


def _has_sdot() -> bool:
    """Whether an ARM processor has sdot. The system is asked, since LLVM knows it of some processors only."""
    if platform.machine().lower() not in ("aarch64", "arm64"):
        return False
    if sys.platform == "linux":
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
        return bool(getauxval(_HWCAP) & _HWCAP_ASIMDDP)
    return sys.platform == "darwin"  # every one of Apple's


@cache
def _may_use_tiles() -> bool:
    """Ask Linux for the permission to use AMX, for all threads of this process; returns whether it has it."""
    return sys.platform == "linux" and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64


def available() -> list[str]:
    """The instruction sets of this processor, the one that is used by default first."""
    has = _features()
    return [name for name in ALL if _NEEDS[name] <= has and (name != "amx" or _may_use_tiles())]


def _chosen() -> Instructions:
    names = available()
    wanted = ALL.get(os.environ.get("MEMCODEC_INSTRUCTIONS", ""))
    # Products that are extended to 16 bits work on every processor: LLVM finds instructions for them everywhere.
    return wanted if wanted and (isinstance(wanted, Extended) or wanted.name in names) else ALL[names[0]]


CHOSEN = _chosen()
if isinstance(CHOSEN, SignedDot):  # needed too by code that calls kernels which were compiled before
    llvmlite.binding.initialize_native_asmparser()
