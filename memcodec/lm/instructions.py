"""The instructions that multiply 8-bit integers on this processor, as LLVM code.

An instruction set adds the products of four bytes of a row and four bytes of each column to 32-bit sums. All sets
return the same integers:

- `avx512-vnni`, `avx-vnni`: vpdpbusd, unsigned times signed bytes, in vectors of 64 and 32 bytes.
- `vectors`: both sides extended to 16 bits, and LLVM's choice of an instruction that multiplies pairs of them and adds
  the two products (pmaddwd, smlal). pmaddubsw, which needs no extension, would saturate.

The set is chosen when this module is imported, by what the processor has. The variable MEMCODEC_INSTRUCTIONS names
another one, for tests and measurements; one that the processor lacks is ignored. The self-test checks the set, and if
it fails, `product.multiply` multiplies one pair at a time ("plain").
"""

import os
from dataclasses import dataclass
from typing import Any

import numba
from llvmlite import ir

_I8, _I16, _I32 = (ir.IntType(bits) for bits in (8, 16, 32))

QUAD = 4  # consecutive entries of the inner dimension that are multiplied together


@dataclass(frozen=True)
class Instructions:
    """An instruction set. width: bytes of a vector; rows: numbers of rows of its tiles, the largest first.

    columns: of a tile, so that the sums of its rows and columns fill the registers.
    """

    name: str
    width: int
    columns: int
    rows: tuple[int, ...]

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

    def finished(self, b: Any, sums: list[Any]) -> list[Any]:
        """Vectors of sums, one lane a column."""
        return sums


class Extended(Instructions):
    """Products of 16-bit integers: each lane has the sum of two products, and a column two lanes."""

    @property
    def sums(self) -> int:
        return self.columns * QUAD * 2 // self.width

    def load_row(self, b: Any, address: Any, unsigned: bool) -> Any:
        loaded = b.load(b.inttoptr(address, ir.VectorType(_I8, QUAD).as_pointer()))
        loaded.align = 1
        wide = (b.zext if unsigned else b.sext)(loaded, ir.VectorType(_I16, QUAD))
        lanes = ir.Constant(ir.VectorType(_I32, self.width // 2), list(range(QUAD)) * (self.width // 2 // QUAD))
        return b.shuffle_vector(wide, ir.Constant(wide.type, ir.Undefined), lanes)

    def load_columns(self, b: Any, address: Any, unsigned: bool) -> Any:
        loaded = b.load(b.inttoptr(address, ir.VectorType(_I8, self.width // 2).as_pointer()))
        loaded.align = 1
        return (b.zext if unsigned else b.sext)(loaded, ir.VectorType(_I16, self.width // 2))

    def dot(self, b: Any, sums: Any, row: Any, columns: Any, unsigned_row: bool) -> Any:
        wide = ir.VectorType(_I32, self.width // 2)
        products = b.mul(b.sext(row, wide), b.sext(columns, wide))  # no entry is above 255, so both are signed here
        return b.add(sums, _pairs(b, products, ir.Constant(wide, ir.Undefined)))

    def finished(self, b: Any, sums: list[Any]) -> list[Any]:
        return [_pairs(b, first, second) for first, second in zip(sums[::2], sums[1::2], strict=True)]


def _pairs(b: Any, first: Any, second: Any) -> Any:
    """The sums of neighbours in two vectors: as many as there are pairs in the first if the second is undefined."""
    count = first.type.count // (2 if isinstance(second, ir.Constant) else 1)
    even, odd = (
        b.shuffle_vector(first, second, ir.Constant(ir.VectorType(_I32, count), list(range(start, 2 * count, 2))))
        for start in (0, 1)
    )
    return b.add(even, odd)


ALL: dict[str, Instructions] = {
    "avx512-vnni": Instructions("avx512-vnni", 64, 32, (12, 8, 6, 4, 3, 2, 1)),
    "avx-vnni": Instructions("avx-vnni", 32, 32, (3, 2, 1)),
    "vectors-64": Extended("vectors-64", 64, 32, (6, 4, 3, 2, 1)),
    "vectors-32": Extended("vectors-32", 32, 16, (3, 2, 1)),
    "vectors-16": Extended("vectors-16", 16, 8, (3, 2, 1)),
}


_NEEDS = {
    "avx512-vnni": {"avx512vnni", "avx512bw"},
    "avx-vnni": {"avxvnni", "avx2"},
    "vectors-64": {"avx512bw"},
    "vectors-32": {"avx2"},
    "vectors-16": set[str](),
}


def _features() -> set[str]:
    """What numba uses of this processor: variables of numba can make it use less."""
    if numba.config.CPU_NAME:  # it compiles for another processor
        return set()
    text = numba.config.CPU_FEATURES
    if text is None:
        text = numba.core.codegen.get_host_cpu_features()
    return {feature[1:] for feature in text.split(",") if feature.startswith("+")}


def available() -> list[str]:
    """The instruction sets of this processor, the fastest first."""
    has = _features()
    return [name for name in ALL if _NEEDS[name] <= has]


def _chosen() -> Instructions:
    names = available()
    wanted = ALL.get(os.environ.get("MEMCODEC_INSTRUCTIONS", ""))
    # What is extended to 16 bits is not bound to a processor: LLVM finds instructions for it everywhere.
    return wanted if wanted and (isinstance(wanted, Extended) or wanted.name in names) else ALL[names[0]]


CHOSEN = _chosen()
