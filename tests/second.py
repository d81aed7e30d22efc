"""A second decoder, in plain Python, written from spec/FORMAT.md alone: slow, and short enough to hold beside the page.

It checks that the page says all that a decoder needs; the section numbers are the page's.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import zstandard

# Logits of the position after each of some tokens, behind a prefix and vectors: section 3, which `reference` has.
Logits = Callable[[list[int], np.ndarray | None], np.ndarray]
P = [round(2**30 * 2 ** (-i / 1024)) for i in range(1024)]
L = [round(1024 * math.log2(1 + i / 1024)) for i in range(1024)]


# ---- 1. container


class Bytes:
    """Bytes that are taken from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def take(self, count: int) -> bytes:
        taken, self.data = self.data[:count], self.data[count:]
        assert len(taken) == count
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        (byte,) = self.take(1)
        return byte if byte < 128 else byte - 128 + 128 * self.varint()

    def column(self, count: int) -> list[int]:
        least, width = self.varint(), self.number(1)
        found: list[int] = []
        while len(found) < count:
            n = min(64, count - len(found))
            packed = self.number((n * width + 7) // 8)
            found += [least + (packed >> i * width) % 2**width for i in range(n)]
        return found


class File:
    """A file's index, and where its bytes are."""

    def __init__(self, blob: bytes) -> None:
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + length])
        parts = {k: blob[8 + length :][slice(*v["data_offsets"])] for k, v in header.items() if k[0] != "_"}
        assert header["__metadata__"]["memcodec"] == "2"
        assert zlib.crc32(blob[:-4]) == struct.unpack("<I", blob[-4:])[0]
        rest, memories = Bytes(parts["document"][:-4]), Bytes(parts.get("memories", b""))
        apart = "memories" in parts
        self.hash = rest.take(16)
        self.size, runs, stored = rest.varint(), rest.varint(), rest.varint()
        runs_of = [rest.varint() for _ in range(runs)]
        self.runs = [number // 2 for number in runs_of]
        # Whether each segment begins a group.
        self.begins = [i > 0 or number % 2 == 0 for number in runs_of for i in range(number // 2)]
        spans = [(rest.varint(), rest.varint(), rest.number(1), rest.number(4)) for _ in range(stored)]
        if self.begins:
            self.identity = rest.take(8)
            self.site, chunk_tokens, self.context = rest.varint(), rest.varint(), rest.varint()
            self.fields = [rest.varint() for _ in range(rest.varint())]
            tokens, self.sizes = rest.column(len(self.begins)), rest.column(len(self.begins))
            self.chunks = []  # of each segment: tokens of its chunks
            for total in tokens:
                n = -(-total // chunk_tokens)
                self.chunks.append([total // n + 1] * (total % n) + [total // n] * (n - total % n))
            count = sum(map(len, self.chunks))
            corrections, memory = rest.column(sum(self.begins)), rest.column(count)
            self.checksums = rest.take(count)
            self.memories = [(memories if apart else rest).take(n) for n in memory]
        self.stored = [self._stored(size, rest.take(packed), *about) for size, packed, *about in spans]
        if self.begins:
            self.corrections = [rest.take(n) for n in corrections]
        assert not rest.data and not memories.data

    def _stored(self, size: int, packed: bytes, method: int, checksum: int) -> bytes:
        data = zstandard.ZstdDecompressor().stream_reader(packed).read() if method else packed
        assert (len(data), zlib.crc32(data)) == (size, checksum)
        return data


# ---- 4. distribution


def frequency(d: int) -> int:
    d = min(d, 29696)
    shift = 2 + d // 1024
    return (P[d % 1024] >> shift if shift >= 0 else P[d % 1024] << -shift) + 1


EARLY = [(512, 512), (731, 256), (788, 102)] + [(853, 102)] * 3 + [(914, 0)] * 14


def tempered(row: list[int], t: int) -> list[int]:
    k, b = EARLY[t]
    best = max(row)
    return [-(min(best - u, 2**20) * k >> 10) - (b * log2u(i + 100) >> 10) for i, u in enumerate(row)]


def log2u(n: int) -> int:
    fraction, exponent = math.frexp(float(np.float32(n)))
    return 1024 * (exponent - 1) + L[int((fraction * 2 - 1) * 1024)]


def entropy(below: list[int]) -> int:
    total = sum(map(frequency, below))
    moment = sum((frequency(d) - 1) * min(d, 29696) for d in below)
    return max(0, log2u(total) - 28672 + moment // total)


# ---- 5. memories


def word(stream: int, index: int) -> int:
    z = (stream * 2**40 + index + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


class Readout:
    """The memory of one chunk, bit by bit."""

    def __init__(self, memory: bytes, share: int, head: np.ndarray, scale: np.ndarray, spread: float) -> None:
        self.bits = [byte >> i & 1 for byte in memory for i in range(8)]
        self.share, self.head, self.scale = share, head, scale
        self.unit = 1 / math.sqrt(64 * max(spread, 1e-30))
        self.energy = self.used = self.window = 0

    def moves(self, t: int, units: int, competitors: list[int]) -> list[int]:
        if not self.share:
            return [0] * len(competitors)
        capped = min(units, 6144)
        self.energy += capped
        wanted = min(self.share * self.energy >> 20, len(self.bits))
        for _ in range(min(wanted - self.used, 4)):
            self.window = (self.window * 2 + self.bits[self.used]) % 2**24
            self.used += 1
        f = sum((self.window & word(1, j)).bit_count() % 2 << j for j in range(64))
        d = self.head.shape[1]
        p = [64 - 2 * (word(2, t * d + i) ^ f).bit_count() for i in range(d)]
        tilt = 1.8685079606336419 * math.sqrt(self.share * capped)
        sums = [sum(a * int(b) for a, b in zip(p, self.head[k], strict=True)) for k in competitors]
        found = [round(n * (float(self.scale[k]) * self.unit) * tilt) for n, k in zip(sums, competitors, strict=True)]
        return [min(max(move, -12288), 12288) for move in found]


def vectors_of(memory: bytes, bits: int, dimensions: int) -> np.ndarray:
    if bits == 16:
        return np.frombuffer(memory, dtype="<f2").reshape(-1, dimensions).astype(np.float32)
    rest, rows = Bytes(memory), []
    while rest.data:
        (scale,) = struct.unpack("<e", rest.take(2))
        levels = rest.number((dimensions * bits + 7) // 8)
        rows.append([(2 * ((levels >> i * bits) % 2**bits) + 1 - 2**bits) * scale for i in range(dimensions)])
    return np.array(rows, dtype=np.float32)


# ---- 7. range coder


class Coder:
    """Bits out of corrections."""

    def __init__(self, data: bytes) -> None:
        self.data = iter(data)
        self.range, self.code = 2**32 - 1, 0
        for _ in range(4):
            self._shift()

    def _shift(self) -> None:
        self.code = (self.code * 256 + next(self.data, 0)) % 2**32

    def bit(self, part: int, whole: int) -> int:
        p = min(max((part << 16) // whole, 1), 65535)
        bound = (self.range >> 16) * p
        bit = int(self.code >= bound)
        self.range = self.range - bound if bit else bound
        self.code -= bound if bit else 0
        while self.range < 2**24:
            self.range *= 256
            self._shift()
        return bit


# ---- 6. corrections, and the whole


def token(coder: Coder, row: list[int], moves_of: Callable[[int, list[int]], list[int]]) -> int:
    """One token. row: logits in units; moves_of: entropy and competitors to their moves."""
    best = max(row)
    below = [best - units for units in row]
    order = sorted(range(len(row)), key=lambda i: (below[i], i))
    competitors, rival = order[:32], order[32:33]
    changed = [frequency(d) for d in below]
    for k, move in zip(competitors, moves_of(entropy(below), competitors), strict=True):
        changed[k] = frequency(below[k] - move)
    winner = max([*competitors, *rival], key=lambda k: changed[k])  # the first of the largest
    total = sum(changed)
    if not coder.bit(changed[winner], total):
        return winner
    changed[winner] = 0
    size = 256
    while size < len(row):
        size *= 2
    first = 0
    while size > 1:
        size //= 2
        lower, both = sum(changed[first : first + size]), sum(changed[first : first + 2 * size])
        if coder.bit(lower, both) if 0 < lower < both else lower == 0:
            first += size
    return first


def decode(blob: bytes, logits: Logits, head: np.ndarray, scale: np.ndarray, spread: float,
           bytes_of: Callable[[list[int]], bytes]) -> bytes:  # fmt: skip
    """The document of a file. head, scale, spread: of the LM; bytes_of: those of ids."""
    file = File(blob)
    spans, pieces, n, segment = iter(file.stored), [], 0, 0
    corrections = iter(file.corrections) if file.begins else iter(())
    for run in file.runs:
        for _ in range(run):
            if file.begins[segment]:
                coder, ids, start = Coder(next(corrections)), [], 0
            size = 0
            for count in file.chunks[segment]:
                memory = file.memories[n]
                vectors = vectors_of(memory, *file.fields) if file.site == 1 else None
                readout = Readout(memory, file.fields[0] if file.site == 0 else 0, head, scale, spread)
                for t in range(count):
                    if len(ids) - start > file.context:
                        start = len(ids) - file.context // 2
                    row = logits(ids[start:], vectors)[-1].tolist()
                    row = tempered(row, len(ids)) if file.site == 0 and len(ids) < len(EARLY) else row
                    ids.append(token(coder, row, partial(readout.moves, t)))
                pieces.append(bytes_of(ids[-count:]))
                assert zlib.crc32(pieces[-1]) % 2**8 == file.checksums[n]
                size += len(pieces[-1])
                n += 1
            assert size == file.sizes[segment]
            segment += 1
        pieces += [span for span in [next(spans, None)] if span is not None]
    document = b"".join(pieces)
    assert len(document) == file.size and hashlib.sha256(document).digest()[:16] == file.hash
    return document
