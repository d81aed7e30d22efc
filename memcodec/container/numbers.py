"""Numbers as bytes: varints, columns of numbers, and their reader, which never reads past the end."""

import struct
from collections.abc import Sequence

import numpy as np

from memcodec.errors import FormatError


def pack_column(values: Sequence[int]) -> bytes:
    """Numbers of similar size: the least one, a number of bits w, and each difference from the least in w bits."""
    least = min(values)
    width = (max(values) - least).bit_length()
    out = varint(least) + bytes([width])
    for start in range(0, len(values), _GROUP):
        group = values[start : start + _GROUP]
        packed = sum((value - least) << (i * width) for i, value in enumerate(group))
        out += packed.to_bytes((len(group) * width + 7) // 8, "little")
    return out


_GROUP = 64  # numbers of a column that are packed together: whole bytes for any number of bits
_TOGETHER = 64 * _GROUP  # that are read at one time


class Reader:
    """Takes bytes from the front of a tensor, and never past its end."""

    def __init__(self, data: bytes | memoryview, name: str, damaged: bool = False) -> None:
        """name: for error messages; damaged: payloads may be cut, and bytes may be left at the end."""
        self._damaged = damaged
        self._data = memoryview(data)
        self._position = 0
        self._name = name

    def __len__(self) -> int:
        """The number of bytes left."""
        return len(self._data) - self._position

    def take(self, count: int) -> memoryview:
        """The next `count` bytes. Raises FormatError if fewer are left."""
        if count > len(self):
            raise FormatError(f"damaged file: {self._name} ends too early")
        self._position += count
        return self._data[self._position - count : self._position]

    def payload(self, count: int) -> memoryview:
        """The next `count` bytes, of data that is not part of the index."""
        return self.take(min(count, len(self)) if self._damaged else count)

    def u32(self) -> int:
        """Four bytes, little-endian."""
        return int(struct.unpack("<I", self.take(4))[0])

    def varint(self) -> int:
        """LEB128, at most 62 bits."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 62:
                raise FormatError(f"damaged file: a number in {self._name} is too long")
        if value >> 62:
            raise FormatError(f"damaged file: a number in {self._name} is too long")
        return value

    def column(self, count: int) -> list[int]:
        """The `count` numbers that `pack_column` wrote. Raises FormatError."""
        numbers: list[int] = self.array(count).tolist()
        return numbers

    def array(self, count: int) -> np.ndarray:
        """The same as an array, int64 [count], which is smaller."""
        least, width = self.varint(), self.take(1)[0]
        if width > 62:
            raise FormatError(f"damaged file: numbers in {self._name} are too long")
        # Groups are whole bytes, so that all of them together are one row of bits.
        packed = np.frombuffer(self.take((count * width + 7) // 8), dtype=np.uint8)
        result = np.full(count, least, dtype=np.int64)
        powers = np.int64(1) << np.arange(width)
        for start in range(0, count if width else 0, _TOGETHER):
            some = result[start : start + _TOGETHER]
            bits = np.unpackbits(packed[start * width // 8 :], count=len(some) * width, bitorder="little")
            some += bits.reshape(-1, width) @ powers
        return result

    def end(self) -> None:
        """Raise FormatError if bytes are left."""
        if len(self) and not self._damaged:
            raise FormatError(f"damaged file: {self._name} is longer than the index says")


def varint(value: int) -> bytes:
    """LEB128: 7 bits per byte, the lowest first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
