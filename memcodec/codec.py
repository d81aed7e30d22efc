"""The whole path, each way: bytes -> spans -> chunks -> memories and corrections -> container, and back."""

import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from memcodec import container as box
from memcodec import corrections, document, greedy, prompt, readout
from memcodec.defaults import DEFAULT_BATCH, DEFAULT_BITS, DEFAULT_EFFORT, DEFAULT_MARGIN, DEFAULT_STEPS
from memcodec.embedding import MemoryEmbedding
from memcodec.errors import ChecksumError, EncodeError, FormatError, ModelMismatchError, ModelNotFoundError
from memcodec.lm import FrozenLM
from memcodec.models import DEFAULT_MODEL, ByteProgress, ModelFolder, resolve, resolve_named, weights_hash
from memcodec.progress import Progress, ProgressCallback
from memcodec.tokens import ByteTokenizer

PREFIX = "..."  # what stands before every chunk: most begin in the middle of something
RATE_STEPS = 8  # memory rates are multiples of 1/8 bit per token
REPAIR_MARGIN = 16  # a chunk that does not verify is corrected again with so many times the margin

_PASS_ROWS = 8  # chunks in one full pass: more are no faster on a CPU
_FIT_ROWS = 32  # chunks in one beam search
_CACHE_TOKENS = 1 << 15  # tokens in the key-value cache at most, whatever the batch
_ENTRY_BYTES = 5  # what a chunk costs in the index


@dataclass(frozen=True)
class _Coded:
    """A chunk on its way: its container form and what it must decode to."""

    chunk: box.Chunk
    tokens: np.ndarray
    data: bytes


class Codec:
    """A frozen LM with everything that encodes and decodes under it. Load once, use often; not thread-safe."""

    def __init__(self, lm: FrozenLM, tokenizer: ByteTokenizer, model: box.ModelId) -> None:
        """For models that are already in memory; most callers want `Codec.load`."""
        self.lm = lm
        self.tokenizer = tokenizer
        self.model = model
        self.classes = corrections.TokenClasses(lm.vocabulary)
        self.steering = readout.Steering(lm.head)

    @classmethod
    def load(
        cls,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        threads: int | None = None,
        attention: str = "sdpa",
        progress: ByteProgress | None = None,
    ) -> "Codec":
        """Load a model by built-in name, local directory or Hugging Face id.

        device: "auto", "cpu", "cuda" or "mps"; threads: CPU threads (default: torch's own choice); attention: "sdpa"
        or "eager". Raises ModelNotFoundError.
        """
        return cls._load(resolve(model, progress), device, threads, attention)

    @classmethod
    def load_for(
        cls,
        blob: bytes,
        model: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        progress: ByteProgress | None = None,
    ) -> "Codec | None":
        """The codec that a file needs: its model by name, or `model`; None where all is stored.

        Raises FormatError, ChecksumError, ModelNotFoundError, ModelMismatchError.
        """
        header = box.unpack(blob)
        if header.model is None:
            return None
        folder = resolve(model, progress) if model else resolve_named(header.model.name, progress)
        codec = cls._load(folder, device, threads)
        codec._check_model(header.model)
        return codec

    @classmethod
    def _load(cls, folder: ModelFolder, device: str, threads: int | None, attention: str = "sdpa") -> "Codec":
        if threads is not None:
            torch.set_num_threads(threads)
        tokenizer = ByteTokenizer.load(folder.path)
        prefix = [int(i) for i in tokenizer.encode(PREFIX)]
        lm = FrozenLM.load(folder.path, prefix, _device(device), attention)
        weights = weights_hash(folder.path, lm.model)[: box.WEIGHTS_HASH_BYTES]
        return cls(lm, tokenizer, box.ModelId(folder.id, weights, tokenizer.digest[: box.TOKENIZER_HASH_BYTES]))

    # ---- encoding

    @torch.no_grad()
    def encode(
        self,
        data: bytes | str,
        memory_rate: float = 1,
        chunk_tokens: int = box.DEFAULT_CHUNK_TOKENS,
        margin: float = DEFAULT_MARGIN,
        batch: int = DEFAULT_BATCH,
        effort: int = DEFAULT_EFFORT,
        verify: bool = True,
        progress: ProgressCallback | None = None,
        site: str = "readout",
        fitting: prompt.Fitting | None = None,
        pure: bool = False,
    ) -> bytes:
        """Compress bytes (or text, as UTF-8) to the bytes of a .memz file.

        memory_rate: bits per token, 0 to 8 in steps of 1/8; chunk_tokens: 1 to 4096; margin: logits; batch: chunks
        decoded side by side to verify; effort: states tried per token by the search; verify: run the decoder over the
        result and repair what differs; site: "readout" or "prompt", where `fitting` (default: Fitting()) takes the
        place of memory_rate and effort. pure: no corrections and nothing stored instead of chunks, whatever the size.
        Raises EncodeError for settings out of range, and with `pure` where a chunk fails, naming the chunks.
        """
        if isinstance(data, str):
            data = data.encode()
        settings = self._settings(memory_rate, chunk_tokens, margin, effort, site)
        if site != "prompt" and (pure or fitting is not None):
            raise EncodeError("pure, fitting: only for the site prompt")
        if site == "prompt":
            fitting = fitting or prompt.Fitting()
            fitting.check()
            settings = replace(settings, rate=Fraction(0), bits=fitting.bits, dimensions=self.lm.embedding_size)
        spans = document.split(data, self.tokenizer)
        pieces = [_cut(span.tokens, chunk_tokens) if isinstance(span, document.Text) else span.data for span in spans]
        chunks = [tokens for piece in pieces if isinstance(piece, list) for tokens in piece]
        stored = None if pure else store(data)
        if fitting is not None and stored is not None:
            _check_worth(fitting, settings, len(chunks), len(stored))
        report = _Reporter(progress, "fit", chunks)
        if fitting is not None:
            coded = self._encode_prompts(chunks, settings, fitting, report)
        else:
            coded = self._encode_chunks(chunks, settings, effort, report)
        parts: list[_Coded | bytes] = []
        for piece in pieces:
            if isinstance(piece, list):
                run = [next(coded) for _ in piece]
                parts += run if pure else _store_losers(run)
            else:
                parts.append(piece)
        _check_pure(parts, parts, pure)
        if verify:
            fitted = parts
            parts = self._repair(parts, settings, batch, effort, progress)
            _check_pure(fitted, parts, pure)
        blob = self._pack(data, parts, settings)
        return blob if stored is None else min(blob, stored, key=len)

    def _settings(self, memory_rate: float, chunk_tokens: int, margin: float, effort: int, site: str) -> box.Settings:
        if not 0 <= memory_rate <= box.MAX_RATE or memory_rate * RATE_STEPS % 1:
            raise EncodeError(f"memory rate {memory_rate:g}: give 0 to {box.MAX_RATE} bits per token in steps of 1/8")
        if not 1 <= chunk_tokens <= box.MAX_CHUNK_TOKENS:
            raise EncodeError(f"chunk tokens {chunk_tokens}: give 1 to {box.MAX_CHUNK_TOKENS}")
        _check_margin(margin)
        if effort < 1:
            raise EncodeError(f"effort {effort}: give 1 or more states per token")
        if site not in ("readout", "prompt"):
            raise EncodeError(f"site {site!r}: give readout or prompt")
        limit = self.lm.max_positions
        if limit is not None and chunk_tokens + len(self.lm.prefix) > limit:
            raise EncodeError(f"chunk tokens {chunk_tokens}: this model has {limit} positions, prefix included")
        return box.Settings(margin, chunk_tokens, Fraction(memory_rate), site)

    def _encode_chunks(
        self, chunks: list[np.ndarray], settings: box.Settings, effort: int, report: "_Reporter"
    ) -> Iterator[_Coded]:
        tables = corrections.load_tables(corrections.regime(settings.site, float(settings.rate)))
        for first in range(0, len(chunks), _FIT_ROWS):
            batch = chunks[first : first + _FIT_ROWS]
            sides = [
                side
                for i in range(0, len(batch), _PASS_ROWS)
                for side in self._look(batch[i : i + _PASS_ROWS], settings)
            ]
            memories = [np.empty(0, dtype=np.uint8)] * len(batch)
            moves: list[np.ndarray | None] = [None] * len(batch)
            if settings.rate:
                known = [side.for_search(tables, self.classes, settings.margin) for side in sides]
                memories = readout.fit(
                    known, self.steering, tables, settings.rate, settings.margin, effort, self.lm.device
                )
                moves = [
                    self.steering.all_moves(side.competition.ids, memory, settings.rate)
                    for side, memory in zip(sides, memories, strict=True)
                ]
            report(batch)
            for side, memory, move in zip(sides, memories, moves, strict=True):
                fixes = greedy.correct(
                    side.tokens, side.competition, side.odds, side.own, move, tables, self.classes, settings.margin
                )
                data = self.tokenizer.decode(side.tokens)
                packed = np.packbits(memory, bitorder="little").tobytes()
                yield _Coded(box.Chunk(len(side.tokens), packed, fixes.data, zlib.crc32(data)), side.tokens, data)

    def fit_memory(
        self,
        text: str,
        site: str = "prompt",
        vectors: int | None = 1,
        bits: int = DEFAULT_BITS,
        steps: int = DEFAULT_STEPS,
        callback: prompt.FitCallback | None = None,
        margin: float = DEFAULT_MARGIN,
        **more: Any,
    ) -> MemoryEmbedding:
        """Fit one memory to one text: a reversible sentence embedding, without a file around it.

        vectors: None for the fewest of 1, 2, 4, ... that succeed; callback: called after every step; more: as in
        `prompt.Fitting`. A fit that ends short of exact is returned all the same. Raises EncodeError.
        """
        if site != "prompt":
            raise EncodeError(f"site {site!r}: only memories of the prompt site stand for themselves")
        _check_margin(margin)
        tokens = self.tokenizer.encode(text)
        if not 1 <= len(tokens) <= box.MAX_CHUNK_TOKENS or self.tokenizer.decode(tokens) != text.encode():
            raise EncodeError(f"a text of {len(tokens)} tokens: give 1 to {box.MAX_CHUNK_TOKENS} that restore it")
        fitting = prompt.Fitting(vectors=vectors, bits=bits, steps=steps, **more)
        (fit,) = prompt.fit(self.lm, [tokens], fitting, margin, callback)
        return MemoryEmbedding(self, fit, bits, zlib.crc32(text.encode()))

    def _encode_prompts(
        self, chunks: list[np.ndarray], settings: box.Settings, fitting: prompt.Fitting, report: "_Reporter"
    ) -> Iterator[_Coded]:
        for first in range(0, len(chunks), _FIT_ROWS):
            batch = chunks[first : first + _FIT_ROWS]
            fits = prompt.fit(self.lm, batch, fitting, settings.margin, lambda step: report.ahead(step.prefix))
            report(batch)
            for tokens, fit in zip(batch, fits, strict=True):
                yield self._under_prompt(tokens, fit.memory, settings)

    def _under_prompt(self, tokens: np.ndarray, memory: bytes, settings: box.Settings) -> _Coded:
        """A chunk under the memory that was fitted to it, with its corrections."""
        tables = corrections.load_tables(corrections.regime(settings.site, 0))
        (side,) = self._look([tokens], settings, self._prompts([memory], settings))
        fixes = greedy.correct(
            tokens, side.competition, side.odds, side.own, None, tables, self.classes, settings.margin
        )
        data = self.tokenizer.decode(tokens)
        return _Coded(box.Chunk(len(tokens), memory, fixes.data, zlib.crc32(data)), tokens, data)

    def _prompts(self, memories: list[bytes], settings: box.Settings) -> torch.Tensor:
        """What stands before chunks with as many vectors each, float32 [chunks, n, hidden]. Raises FormatError."""
        vectors = [prompt.unpack(memory, self.lm.embedding_size, settings.bits) for memory in memories]
        return prompt.behind_prefix(self.lm, torch.from_numpy(np.stack(vectors)).to(self.lm.device))

    def _look(
        self, batch: list[np.ndarray], settings: box.Settings, prompts: torch.Tensor | None = None
    ) -> Iterator["_Side"]:
        """The unsteered side of a few chunks: one full pass."""
        rows = np.zeros((len(batch), max(map(len, batch))), dtype=np.int64)
        for row, tokens in zip(rows, batch, strict=True):
            row[: len(tokens)] = tokens
        hidden = self.lm.hidden(torch.from_numpy(rows), prompts)
        competitors = readout.COMPETITORS if settings.rate else 1
        for tokens, states in zip(batch, hidden, strict=True):
            logits = self.lm.logits(states[: len(tokens)])
            competition = readout.Competition.of(logits, competitors, settings.margin)
            values = logits.cpu().numpy()
            odds = [
                corrections.token_odds(self.classes, row, int(token), settings.margin)
                for row, token in zip(values, tokens, strict=True)
            ]
            yield _Side(tokens, competition, odds, values[np.arange(len(tokens)), tokens])

    def _repair(
        self,
        parts: list[_Coded | bytes],
        settings: box.Settings,
        batch: int,
        effort: int,
        progress: ProgressCallback | None,
    ) -> list[_Coded | bytes]:
        """Decode every chunk for real; correct again with a wider margin what differs, and store what still does."""
        for margin in (settings.margin * REPAIR_MARGIN, None):
            coded = [part for part in parts if isinstance(part, _Coded)]
            report = _Reporter(progress, "verify", [part.tokens for part in coded])
            written = self._decode_chunks([part.chunk for part in coded], settings, batch, report)
            wrong = {id(part) for part, data in zip(coded, written, strict=True) if data != part.data}
            if not wrong:
                break
            failed = [part for part in coded if id(part) in wrong]
            fixed: dict[int, _Coded | bytes] = {id(part): part.data for part in failed}
            if margin is not None:
                wider = replace(settings, margin=margin)
                if settings.site == "prompt":
                    again = iter([self._under_prompt(part.tokens, part.chunk.memory, wider) for part in failed])
                else:
                    tokens = [part.tokens for part in failed]
                    again = self._encode_chunks(tokens, wider, effort, _Reporter(None, "", []))
                fixed = {id(part): new for part, new in zip(failed, again, strict=True)}
            parts = [fixed.get(id(part), part) for part in parts]
        return parts

    def _pack(self, data: bytes, parts: list[_Coded | bytes], settings: box.Settings) -> bytes:
        final: list[box.Chunk | box.StoredSpan] = []
        for part in parts:
            if isinstance(part, _Coded):
                final.append(part.chunk)
            elif final and isinstance(last := final[-1], box.StoredSpan):
                final[-1] = box.StoredSpan(last.data + part)
            else:
                final.append(box.StoredSpan(part))
        return box.pack(box.describe(data, final, self.model, settings))

    # ---- decoding

    @torch.no_grad()
    def decode(
        self,
        blob: bytes,
        batch: int = DEFAULT_BATCH,
        progress: ProgressCallback | None = None,
        hook: greedy.LogitHook | None = None,
    ) -> bytes:
        """Decompress the bytes of a .memz file.

        batch: chunks decoded side by side; hook: changes the logits before any decision, for tests of the margin.
        Raises FormatError, ChecksumError, ModelMismatchError.
        """
        parsed = box.unpack(blob)
        written: Iterator[bytes] = iter(())
        if parsed.model is not None and parsed.settings is not None:
            self._check_model(parsed.model)
            self._check_positions(parsed.settings.chunk_tokens + len(self.lm.prefix))
            if parsed.settings.site == "prompt" and parsed.settings.dimensions != self.lm.embedding_size:
                raise FormatError(f"damaged header: vectors of {parsed.settings.dimensions} dimensions")
            report = _Reporter(progress, "decode", [np.empty(chunk.tokens) for chunk in parsed.chunks])
            written = iter(self._decode_chunks(parsed.chunks, parsed.settings, batch, report, hook))
        return assemble(parsed, written)

    def _decode_chunks(
        self,
        chunks: list[box.Chunk],
        settings: box.Settings,
        batch: int,
        report: "_Reporter",
        hook: greedy.LogitHook | None = None,
    ) -> list[bytes]:
        if batch < 1:
            raise EncodeError(f"batch {batch}: give 1 or more chunks")
        tables = corrections.load_tables(corrections.regime(settings.site, float(settings.rate)))
        steering = self.steering if settings.rate else None
        result = [b""] * len(chunks)
        for numbers in _batches(chunks, settings, batch):
            some = [chunks[i] for i in numbers]
            coded = [greedy.CodedChunk(c.tokens, _unpack_bits(c, settings), c.corrections) for c in some]
            prompts = None
            if settings.site == "prompt":
                prompts = self._prompts([c.memory for c in some], settings)
                self._check_positions(max(c.tokens for c in some) + prompts.shape[1])
            ids = greedy.decode(
                coded, self.lm, steering, tables, self.classes, settings.rate, prompts, hook, report.tokens
            )
            for i, tokens in zip(numbers, ids, strict=True):
                result[i] = self.tokenizer.decode(tokens)
            report.chunks(len(some))
        return result

    def _check_positions(self, needed: int) -> None:
        limit = self.lm.max_positions
        if limit is not None and needed > limit:
            raise FormatError(f"damaged header: chunks longer than the model's {limit} positions")

    def _check_model(self, needed: box.ModelId) -> None:
        if (needed.weights, needed.tokenizer) != (self.model.weights, self.model.tokenizer):
            what = "weights" if needed.weights != self.model.weights else "tokenizer"
            raise ModelMismatchError(
                f"the file needs model {needed.name!r} ({what} {getattr(needed, what).hex()}); "
                f"{self.model.name!r} has {what} {getattr(self.model, what).hex()}: pass the right one as --model"
            )

    # ---- measuring

    @torch.no_grad()
    def bound(self, data: bytes | str, chunk_tokens: int = box.DEFAULT_CHUNK_TOKENS) -> float:
        """The bound in bytes: the sum of -log2 p(token) of the LM over the document's chunks, over 8.

        Stored spans count with what zstd -19 makes of them.
        """
        total = 0.0
        for span in document.split(data.encode() if isinstance(data, str) else data, self.tokenizer):
            if isinstance(span, document.Stored):
                total += document.zstd_size(span.data)
                continue
            for tokens in _cut(span.tokens, chunk_tokens):
                total += float(self.token_bits(tokens).sum()) / 8
        return total

    @torch.no_grad()
    def token_bits(self, tokens: np.ndarray) -> np.ndarray:
        """-log2 p of each token of one chunk under the LM, float64 [tokens]."""
        ids = torch.from_numpy(tokens)[None]
        logits = self.lm.logits(self.lm.hidden(ids))[0].cpu().double()
        nats = -torch.log_softmax(logits, dim=1)[torch.arange(len(tokens)), ids[0]]
        return (nats / math.log(2)).numpy()


def store(data: bytes) -> bytes:
    """The bytes of a .memz file that stores everything and needs no model."""
    parts: list[box.Chunk | box.StoredSpan] = [box.StoredSpan(data)] if data else []
    return box.pack(box.Container(len(data), hashlib.sha256(data).digest(), parts))


def assemble(parsed: box.Container, written: Iterator[bytes]) -> bytes:
    """Put decoded chunks and stored spans together and check them. Raises ChecksumError."""
    pieces = []
    number = 0
    for part in parsed.parts:
        if isinstance(part, box.StoredSpan):
            pieces.append(part.data)
            continue
        data = next(written)
        if zlib.crc32(data) != part.checksum:
            raise ChecksumError(f"chunk {number} does not match its checksum: damaged file, or a model that differs")
        pieces.append(data)
        number += 1
    result = b"".join(pieces)
    if len(result) != parsed.size or hashlib.sha256(result).digest() != parsed.sha256:
        raise ChecksumError("the decoded bytes do not match the original's SHA-256")
    return result


@dataclass(frozen=True)
class _Side:
    """The unsteered side of one chunk, all that its encoding needs of the LM."""

    tokens: np.ndarray
    competition: readout.Competition
    odds: list[corrections.TokenOdds]
    own: np.ndarray

    def for_search(self, tables: corrections.Tables, classes: corrections.TokenClasses, margin: float) -> readout.Chunk:
        costs = readout.MissCosts.of(tables, classes, self.competition, self.tokens, self.odds, self.own, margin)
        return readout.Chunk(self.tokens, self.competition, costs)


class _Reporter:
    """Turns "so many tokens done" into progress reports."""

    def __init__(self, callback: ProgressCallback | None, stage: str, chunks: list[np.ndarray]) -> None:
        self._callback = callback
        self._stage = stage
        self._totals = sum(map(len, chunks)), len(chunks)
        self._done = [0, 0]
        self._ahead = 0

    def __call__(self, chunks: list[np.ndarray]) -> None:
        self._ahead = 0
        self._done[0] += sum(map(len, chunks))
        self.chunks(len(chunks))

    def tokens(self, count: int) -> None:
        self._done[0] += count
        self._send()

    def ahead(self, count: int) -> None:
        """So many tokens of the chunks to be reported next are done; fewer than before are taken for a retry."""
        self._ahead = max(self._ahead, count)
        self._send()

    def chunks(self, count: int) -> None:
        self._done[1] += count
        self._send()

    def _send(self) -> None:
        if self._callback is not None:
            done, chunks = self._done
            self._callback(Progress(self._stage, done + self._ahead, self._totals[0], chunks, self._totals[1]))


def _cut(tokens: np.ndarray, size: int) -> list[np.ndarray]:
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


def _batches(chunks: list[box.Chunk], settings: box.Settings, rows: int) -> Iterator[list[int]]:
    """Chunk numbers in batches of at most `rows`, that the cache holds; prompts in one batch have as many vectors."""
    prompts = settings.site == "prompt"
    counts = [box.vectors(c.memory, settings.dimensions, settings.bits) if prompts else 0 for c in chunks]
    for count in sorted(set(counts)):
        numbers = [i for i in range(len(chunks)) if counts[i] == count]
        size = max(1, min(rows, _CACHE_TOKENS // (settings.chunk_tokens + count)))
        yield from (numbers[i : i + size] for i in range(0, len(numbers), size))


def _check_margin(margin: float) -> None:
    if not 1e-9 <= margin < 100:
        raise EncodeError(f"margin {margin:g}: give 1e-9 to 100 logits")


def _check_worth(fitting: prompt.Fitting, settings: box.Settings, chunks: int, stored: int) -> None:
    """Raise EncodeError where vectors alone are larger than the file that stores all: a fit would be for nothing."""
    size = (fitting.vectors or 1) * box.vector_bytes(settings.dimensions, settings.bits)
    if chunks and chunks * size >= stored:
        raise EncodeError(
            f"{chunks} chunks with {size:,} bytes of vectors each: stored, the file has {stored:,} bytes; use --pure "
            "for vectors whatever their size, fewer --bits, or longer chunks"
        )


def _check_pure(fitted: list[_Coded | bytes], final: list[_Coded | bytes], pure: bool) -> None:
    """Raise EncodeError where `pure` and a chunk (as it was fitted) has corrections or is stored in the end."""
    ends = [end for start, end in zip(fitted, final, strict=True) if isinstance(start, _Coded)]
    failed = [str(n) for n, end in enumerate(ends) if not isinstance(end, _Coded) or end.chunk.corrections]
    if pure and failed:
        more = ", ..." if len(failed) > 10 else ""
        raise EncodeError(
            f"{len(failed)} of {len(ends)} chunks need corrections (chunk {', '.join(failed[:10])}{more}): "
            "give shorter chunks, more vectors or more steps"
        )


def _unpack_bits(chunk: box.Chunk, settings: box.Settings) -> np.ndarray:
    packed = np.frombuffer(chunk.memory, dtype=np.uint8)
    return np.unpackbits(packed, bitorder="little", count=readout.memory_bits(chunk.tokens, settings.rate))


def _store_losers(run: list[_Coded]) -> list[_Coded | bytes]:
    """Store the stretches of a run of chunks that zstd makes smaller: the run, else its halves, and so on."""
    lm_size = sum(len(c.chunk.memory) + len(c.chunk.corrections) + _ENTRY_BYTES for c in run)
    data = b"".join(c.data for c in run)
    zstd = min(document.zstd_size(data), len(data)) + 2 * _ENTRY_BYTES
    if zstd <= lm_size:
        return [data]
    if len(run) == 1 or zstd > 3 * lm_size:
        return list(run)
    half = len(run) // 2
    return _store_losers(run[:half]) + _store_losers(run[half:])


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(name, False):
        raise ModelNotFoundError(f"device {name!r} is not available here: use --device cpu")
    return name
