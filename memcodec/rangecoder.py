"""Byte-wise range coder over static integer frequencies (spec/FORMAT.md, "Range coder").

The carry-propagating range coder of Martin (1979) as LZMA made it popular: 32-bit range, 64-bit low. The stream ends
with the shortest run of bytes that still names the final interval (the decoder reads zeros past the end), so that a
chunk of ~110 bytes pays less than one byte for the coder; `constriction`'s coders end on a 32-bit word, 2 to 4 bytes
more, and take their tables as floats, which a written specification cannot pin down.
"""

_TOP = 1 << 24
_MASK32 = 0xFFFFFFFF


class RangeEncoder:
    """Encodes intervals of integer frequency tables into bytes."""

    def __init__(self) -> None:
        self._low = 0
        self._range = _MASK32
        self._cache = 0
        self._pending = 1  # bytes held back while a carry may still run through them, the cache included
        self._out = bytearray()

    def encode(self, start: int, size: int, bits: int) -> None:
        """Encode the interval [start, start + size) of a table whose frequencies sum to 2**bits (bits <= 16)."""
        step = self._range >> bits
        self._low += start * step
        self._range = step * size
        while self._range < _TOP:
            self._range = (self._range << 8) & _MASK32
            self._shift()

    def encode_uniform(self, value: int, bits: int) -> None:
        """Encode `bits` equiprobable bits, most significant 8 first."""
        while bits > 0:
            take = min(bits, 8)
            bits -= take
            self.encode((value >> bits) & ((1 << take) - 1), 1, take)

    def _shift(self) -> None:
        if self._low < 0xFF000000 or self._low > _MASK32:
            carry = self._low >> 32
            self._out.append((self._cache + carry) & 0xFF)
            self._out.extend([(0xFF + carry) & 0xFF] * (self._pending - 1))
            self._pending = 0
            self._cache = (self._low >> 24) & 0xFF
        self._pending += 1
        self._low = (self._low << 8) & _MASK32

    def finish(self) -> bytes:
        """The shortest bytes that decode to what was encoded, given that zeros follow them."""
        high = self._low + self._range - 1
        for drop in range(32, -1, -8):  # the number in [low, high] with the most zero bytes at its end
            value = (high >> drop) << drop
            if value >= self._low:
                break
        self._low = value
        for _ in range(5):
            self._shift()
        return bytes(self._out[1:]).rstrip(b"\0")  # the first byte is the empty cache's


class RangeDecoder:
    """Decodes what `RangeEncoder` wrote; past the end of the bytes it reads zeros, so it never fails."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 4
        self._range = _MASK32
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self._step = 1

    def peek(self, bits: int) -> int:
        """The point in [0, 2**bits) that the next symbol's interval contains."""
        self._step = self._range >> bits
        return min(self._code // self._step, (1 << bits) - 1)

    def consume(self, start: int, size: int) -> None:
        """Take the interval that contained the peeked point."""
        self._code -= start * self._step
        self._range = self._step * size
        while self._range < _TOP:
            byte = self._data[self._position] if self._position < len(self._data) else 0
            self._code = ((self._code << 8) | byte) & _MASK32
            self._range = (self._range << 8) & _MASK32
            self._position += 1

    def decode_uniform(self, bits: int) -> int:
        """Decode what `encode_uniform` wrote."""
        value = 0
        while bits > 0:
            take = min(bits, 8)
            bits -= take
            point = self.peek(take)
            self.consume(point, 1)
            value = (value << take) | point
        return value
