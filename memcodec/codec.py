"""The whole path, each way: bytes -> spans -> chunks -> memories and corrections -> container, and back."""

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from typing import Any, BinaryIO

import numpy as np

import memcodec
from memcodec import container
from memcodec.container import Container, ModelId, Segment, Settings
from memcodec.container.assembly import (
    Lost,
    SourceRange,
    container_of,
    document_of,
    encoded_groups,
    parts_of,
    salvage_of,
    stored,
)
from memcodec.document.blocks import Block, BlockQueue, Cutting, read_blocks
from memcodec.document.plan import AUTO_GROUPS, AUTO_TOKENS, GROUP_CONTEXTS, visible_tokens, windows
from memcodec.document.source import PIECE_BYTES, Source
from memcodec.document.spans import Stored, has_text, zstd_size
from memcodec.engines import find_engine
from memcodec.engines.engine import Engine
from memcodec.engines.local import Local
from memcodec.errors import (
    ChecksumError,
    EncodeError,
    FormatError,
    MachineError,
    ModelMismatchError,
    ModelNotFoundError,
    PrimerMismatchError,
)
from memcodec.files import frames
from memcodec.files.frames import FrameSettings
from memcodec.files.journal import Journal
from memcodec.files.primer import Primer
from memcodec.groups import FIT_CHUNKS, HEAD_ROWS, PASS_ROWS, decode_all
from memcodec.lm import arithmetic
from memcodec.lm.compiled import are_kept
from memcodec.lm.model import ExactLM, find_device
from memcodec.lm.sequences import SequenceInput
from memcodec.memory.site import Site
from memcodec.memory.sites import site_of
from memcodec.models import registry
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.progress import ByteProgress, Progress, ProgressCallback, Reporter
from memcodec.settings import (
    DEFAULT_BATCH,
    DEFAULT_CHUNK_TOKENS,
    MAX_CHUNK_TOKENS,
    MAX_CONTEXT,
    Context,
    Prompt,
    Readout,
)

Data = bytes | bytearray | memoryview | str

_MOST_STATES = 1 << 26  # of the search for a memory, over a chunk: 5 bytes each, a thread
_FIT_TIME = {"readout": 1.1, "prompt": 100.0}  # of a token, by that of decoding one in a full batch
_LOT = 256  # documents that are verified together, at most
_ALONE = 3.5  # what decoding a token takes more, by the rows of the batch


class Codec:
    """A frozen LM with everything that encodes and decodes under it. Load once, use often; threads take turns."""

    def __init__(
        self, folder: registry.ModelFolder, tokenizer: ByteTokenizer, lm: ExactLM | None, device: str, refusal: str = ""
    ) -> None:
        """Most callers want `Codec.load`. lm: None where the exact LM lacks the architecture; refusal: why."""
        self.name = folder.id
        self.folder = folder
        self.tokenizer = tokenizer
        self.engine: Engine = Local()
        self._exact = lm
        self._refusal = refusal
        self._device = device
        self._floats: Any = None
        self._plain = lm
        self.primer: Primer | None = None

    def __repr__(self) -> str:
        primed = f" with a primer of {len(self.primer.tokens)} tokens" if self.primer else ""
        return f"<memcodec.Codec of {self.name!r} on {self._device}{primed}>"

    def with_primer(self, primer: "Primer | None") -> "Codec":
        """The same codec, where every group and frame sees a primer before it; None: without. Shares the model.

        Raises ModelNotFoundError; EncodeError where the model has not as many positions; ModelMismatchError where the
        primer is of another model.
        """
        other = copy(self)
        other.primer, other._floats, other._exact = primer, None, self._plain
        if primer is not None:
            if self.tokenizer.decode(primer.tokens) != primer.text or primer.tokens.max() >= self.lm.vocabulary:
                raise ModelMismatchError(f"the primer was made for another model than {self.name!r}: make one for it")
            assert self._plain is not None
            other._exact = self._plain.behind(primer.tokens)
        return other

    def with_engine(self, engine: "str | Engine") -> "Codec":
        """The same codec, whose groups are coded by an engine: "local", "ray", or a `RayEngine` with settings.

        Shares the model. Raises EncodeError, MissingDependencyError.
        """
        other = copy(self)
        other.engine = find_engine(engine) if isinstance(engine, str) else engine
        return other

    @classmethod
    def load(
        cls,
        model: str = registry.DEFAULT_MODEL,
        *,
        device: str = "auto",
        threads: int | None = None,
        kernels: str = "auto",
        progress: ByteProgress | None = None,
    ) -> "Codec":
        """Load a model by built-in name, local directory or Hugging Face id (or id@revision).

        device: "auto", "cpu" or "cuda"; threads: CPU threads, by default one a core; kernels: "numba" (CPU
        only), "torch" or "auto": two implementations of the same arithmetic. An architecture that the exact LM lacks
        is loaded for `fit_memory` alone. Raises ModelNotFoundError, MachineError.
        """
        return cls._load(registry.resolve(model, progress), device, threads, kernels, progress)

    @classmethod
    def load_for(
        cls,
        file: "bytes | bytearray | memoryview | Container",
        model: str | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        kernels: str = "auto",
        allow_download: bool = False,
        primer: "Primer | None" = None,
        progress: ByteProgress | None = None,
    ) -> "Codec | None":
        """The codec that a file needs: its model by name, or `model`, behind `primer`; None where all is stored.

        allow_download: fetch a model from the Hugging Face hub that only the file names. Raises FormatError,
        ChecksumError, ModelNotFoundError, ModelMismatchError (PrimerMismatchError for a primer), MachineError.
        """
        parsed = file if isinstance(file, Container) else container.unpack_all(as_bytes(file, "file"))[0]
        if parsed.model is None:
            return None
        codec = cls.load_named(
            model, parsed.model.name, device=device, threads=threads, kernels=kernels, allow_download=allow_download,
            progress=progress,
        ).with_primer(primer)  # fmt: skip
        codec.check(parsed)
        return codec

    @classmethod
    def load_named(
        cls,
        model: str | None,
        named: str,
        *,
        device: str = "auto",
        threads: int | None = None,
        kernels: str = "auto",
        allow_download: bool = False,
        progress: ByteProgress | None = None,
    ) -> "Codec":
        """Load `model`, or else the one that a file names, which nobody here has named. Raises as `load`."""
        folder = registry.resolve(model, progress) if model else registry.resolve_named(named, allow_download, progress)
        return cls._load(folder, device, threads, kernels, progress)

    @classmethod
    def _load(
        cls, folder: registry.ModelFolder, device: str, threads: int | None, kernels: str, progress: Any
    ) -> "Codec":
        device = find_device(device)
        if refusal := registry.unsupported(folder):
            return cls(folder, ByteTokenizer.load(folder.path), None, device, refusal)
        weights, tokenizer = registry.load_exact(folder, progress)
        if progress is not None and not are_kept():
            progress("compiling for this processor (once)", 0, 0)
        return cls(folder, tokenizer, ExactLM(weights, device, threads, kernels), device)

    @property
    def lm(self) -> ExactLM:
        """The exact LM. Raises ModelNotFoundError where memcodec lacks the model's architecture."""
        if self._exact is None:
            raise ModelNotFoundError(self._refusal)
        return self._exact

    @property
    def floats(self) -> Any:
        """The same LM in floating point (`memcodec.models.floats.FrozenLM`), loaded when first needed."""
        if self._floats is None:
            from memcodec.models.floats import FrozenLM

            prefix = self.tokenizer.prefix() if self._exact is None else self._exact.prefix.tolist()
            self._floats = FrozenLM.load(self.folder.path, list(prefix), self._device)
        return self._floats

    @property
    def model(self) -> ModelId:
        """What a file says of the model that it needs."""
        return ModelId(self.name, self.lm.identity[: container.IDENTITY_BYTES])

    # ---- encoding

    def encode(
        self,
        data: "Data | BinaryIO | Source",
        *,
        site: Readout | Prompt = Readout(),  # noqa: B008 (frozen)
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
        context: Context = "auto",
        batch: int = DEFAULT_BATCH,
        verify: bool = True,
        journal: Journal | None = None,
        progress: ProgressCallback | None = None,
    ) -> bytes:
        """Compress bytes (or text, as UTF-8) to the bytes of a .memz file; a file open for reading, piece by piece.

        With the readout site they are the same on every machine with the same zstd; the prompt site fits in floating
        point. site: where memories enter the LM, with its settings; chunk_tokens: 1 to 4096; context: tokens before a
        position that the LM sees at most, 0 for those of its own chunk alone, "auto" for as many as cost little time,
        "max" for the fewest bytes, slowly; batch: groups decoded side by side to verify; verify: decode the result and
        compare; journal: keeps what is encoded, and gives it back to a second run. Raises EncodeError for settings out
        of range, and where `pure` chunks need corrections, naming them; MachineError where the result does not decode
        to the input.
        """
        source = as_source(data, "data")
        check_settings(site, chunk_tokens, batch, context)
        if (blob := without_model(source)) is not None:
            return blob
        (blob,) = self._encode_many([source], site, chunk_tokens, context, batch, verify, progress, journal)
        return blob

    def encode_many(
        self,
        documents: "Iterable[Data | BinaryIO | Source]",
        *,
        site: Readout | Prompt = Readout(),  # noqa: B008 (frozen)
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
        context: Context = "auto",
        batch: int = DEFAULT_BATCH,
        verify: bool = True,
        progress: ProgressCallback | None = None,
    ) -> Iterator[bytes]:
        """The files of several documents, in order, as soon as they are made: settings as in `encode`.

        Groups of all documents are coded in common batches, and verified so. Raises as `encode`, at the first document
        that fails.
        """
        check_settings(site, chunk_tokens, batch, context)
        sources = [as_source(data, "data") for data in _several(documents, "documents")]
        return self._encode_many(sources, site, chunk_tokens, context, batch, verify, progress)

    def _encode_many(
        self, sources: list[Source], site: Readout | Prompt, chunk_tokens: int, context: Context, batch: int,
        verify: bool, progress: ProgressCallback | None, journal: Journal | None = None,
    ) -> Iterator[bytes]:  # fmt: skip
        size = sum(source.size for source in sources)
        stages = _Stages(progress, size, site, _rows(size, chunk_tokens, context, batch, verify))
        checking = stages.verify()
        lot: list[tuple[Source, bytes]] = []
        groups = 0
        for source, made in self._encode(sources, site, chunk_tokens, context, stages.fit(), journal):
            blob = container.pack(made)
            if isinstance(site, Prompt) and site.pure:
                _check_pure(made)
            elif len(whole := container.pack(stored(source))) <= len(blob):
                blob = whole
            lot.append((source, blob))
            groups += len(made.groups)
            if groups >= batch or not verify or len(lot) == _LOT or len(sources) == 1:
                if verify:
                    yield from self._verified(lot, batch, checking)
                else:
                    source.check_unchanged()
                    yield blob
                lot, groups = [], 0
        yield from self._verified(lot, batch, checking)

    def _verified(self, lot: list[tuple[Source, bytes]], batch: int, report: Reporter) -> list[bytes]:
        """Decode what is about to be given out, what is small side by side. Raises MachineError."""
        small = [(source, blob) for source, blob in lot if source.size <= PIECE_BYTES]
        if len(small) > 1:
            parsed = [container.unpack(blob) for _, blob in small]
            try:
                found = self._decode_many(parsed, batch, report)
            except (FormatError, ChecksumError) as error:
                raise _undecodable(error) from error
            if any(source.read(0, source.size) != back for (source, _), back in zip(small, found, strict=True)):
                raise MachineError("what was encoded decodes to other bytes here: nothing was written")
        for source, blob in lot:
            if len(small) <= 1 or source.size > PIECE_BYTES:
                self._verify(blob, source, batch, report)
        for source, _ in lot:
            source.check_unchanged()
        return [blob for _, blob in lot]

    def _encode(
        self, sources: Iterable[Source], site: Readout | Prompt, chunk_tokens: int, context: Context, report: Reporter,
        journal: Journal | None,
    ) -> Iterator[tuple[Source, Container]]:  # fmt: skip
        """The containers of some documents, whose groups are coded in common batches. Raises EncodeError."""
        self._check_chunk_tokens(chunk_tokens, (site.vectors or 1) if isinstance(site, Prompt) else 0)
        where = site_of(self.lm, site, lambda: self.floats)
        positions = self.lm.positions - len(self.lm.prefix)
        cutting = Cutting(chunk_tokens, self._context(context, site), positions, self.lm.vocabulary)
        pure = isinstance(site, Prompt) and site.pure
        sources = list(sources)
        for source in sources:
            self._check_room(source, cutting)
        alone = len(sources) == 1
        read = chain.from_iterable(read_blocks(source, self.tokenizer, cutting, alone) for source in sources)
        if isinstance(site, Prompt) and not pure:
            blocks = BlockQueue(_expected(_worthwhile(read, site, where), report))
        else:
            blocks = BlockQueue(_expected(read, report))
        seen = visible_tokens(cutting.context, positions)
        encode = partial(self.engine.encode, self, site, context=seen, report=report)
        if journal is None:
            coded = encode(blocks.groups())
        else:
            journal.begin(self._key(sources[0], site, cutting), FIT_CHUNKS if isinstance(site, Prompt) else 1)
            coded = journal.coded(blocks.groups(), encode, lambda group: report.finish(list(group.lengths)))
        parts: list[Segment | SourceRange] = []
        furthest = 1
        for block in blocks.blocks():
            parts += parts_of(block.spans, block.plan.runs, block.start, coded, self.tokenizer, not pure)
            furthest = max(furthest, block.plan.context)
            if block.last:
                primer = self.primer.identity if self.primer else b""
                settings = Settings(where.name, where.fields, chunk_tokens, furthest, primer)
                yield block.source, container_of(block.source, parts, self.model, settings)
                parts, furthest = [], 1

    def _check_room(self, source: Source, cutting: Cutting) -> None:
        """Raise EncodeError now, and not after days, where a document has more chunks than a file may."""
        if source.size > container.MAX_CHUNKS * cutting.chunk_tokens // 2:  # fewer bytes have fewer tokens than that
            count = sum(len(block.lengths) for block in read_blocks(source, self.tokenizer, cutting))
            if count > container.MAX_CHUNKS:
                raise EncodeError(
                    f"{source.size:,} bytes are {count:,} chunks, and a file has {container.MAX_CHUNKS:,} at most: cut "
                    "the text into several files, or give longer chunks (chunk tokens)"
                )

    def _key(self, source: Source, site: Readout | Prompt, cutting: Cutting) -> bytes:
        """What the groups of a document follow from."""
        primer = self.primer.identity if self.primer else b""
        versions = memcodec.__version__, container.VERSION, self.lm.identity, primer
        return repr((versions, site, cutting, source.size, source.digest())).encode()

    def _check_chunk_tokens(self, chunk_tokens: int, vectors: int) -> None:
        if chunk_tokens + vectors + len(self.lm.prefix) > self.lm.positions:
            raise EncodeError(
                f"chunk tokens {chunk_tokens}: this model has {self.lm.positions} positions, prefix included"
            )

    def _context(self, context: Context, site: Readout | Prompt) -> Context:
        """The context asked for. Raises EncodeError."""
        if isinstance(site, Prompt):
            if context not in ("auto", 0):
                raise EncodeError(f"context {context}: a chunk of the prompt site has none, its vectors come first")
            return 0
        return context

    def _verify(self, blob: bytes, source: Source, batch: int, report: Reporter) -> None:
        """Decode what is about to be given out. Raises MachineError."""
        at = 0
        try:
            for piece in self._decode(container.unpack(blob), batch, report):
                end = min(at + len(piece), source.size)
                if source.read(at, end) != piece:
                    raise MachineError("what was encoded decodes to other bytes here: nothing was written")
                at = end
        except (FormatError, ChecksumError) as error:
            raise _undecodable(error) from error
        if at != source.size:
            raise MachineError("what was encoded decodes to fewer bytes here: nothing was written")

    # ---- decoding

    def decode(
        self,
        blob: bytes | bytearray | memoryview,
        *,
        batch: int = DEFAULT_BATCH,
        progress: ProgressCallback | None = None,
    ) -> bytes:
        """Decompress the bytes of a .memz file, or of some, one behind the other.

        batch: groups decoded side by side. Raises FormatError, ChecksumError, ModelMismatchError; EncodeError for a
        batch out of range.
        """
        found = container.unpack_all(as_bytes(blob, "blob"))
        return b"".join(piece for parsed in found for piece in self.decode_pieces(parsed, batch, progress))

    def decode_pieces(
        self, parsed: Container, batch: int = DEFAULT_BATCH, progress: ProgressCallback | None = None
    ) -> Iterator[bytes]:
        """As `decode`, for a file that is unpacked already, piece by piece; the whole is checked behind the last one.

        So what was given out counts only when the end was reached without an error.
        """
        _check_batch(batch)
        return self._for(parsed)._decode(parsed, batch, Reporter(progress, "decode", parsed.size, 0, 1))

    def _for(self, parsed: Container) -> "Codec":
        """This one, or the same without its primer where a file was made without one."""
        needs = parsed.settings is not None and bool(parsed.settings.primer)
        return self if needs or self.primer is None else self.with_primer(None)

    def salvage(
        self,
        blob: bytes | bytearray | memoryview,
        *,
        batch: int = DEFAULT_BATCH,
        progress: ProgressCallback | None = None,
    ) -> Iterator[bytes | Lost]:
        """What a damaged file gives back, in order: pieces of the document, and `Lost` where there is none.

        A chunk counts where it matches its checksum of 8 bits, so one of 256 damaged ones is given out wrong. Raises
        FormatError where the index itself does not read, ModelMismatchError.
        """
        _check_batch(batch)
        parsed = container.unpack(as_bytes(blob, "blob"), damaged=True)
        report = Reporter(progress, "decode", parsed.size, 0, 1)
        report.expect([chunk.tokens for chunk in parsed.chunks], parsed.size)
        written: Iterator[np.ndarray] = iter(())
        if parsed.settings is not None:
            self.check(parsed)
            coded = encoded_groups(parsed.groups)
            written = self.engine.decode(self, self.site_in(parsed), coded, parsed.settings.context, batch, report)
        return salvage_of(parsed, written, self.tokenizer)

    def decode_many(
        self,
        blobs: Iterable[bytes | Container],
        *,
        batch: int = DEFAULT_BATCH,
        progress: ProgressCallback | None = None,
    ) -> list[bytes]:
        """The documents of several files, whose groups are decoded side by side. Raises as `decode`."""
        _check_batch(batch)
        given = _several(blobs, "blobs")
        found = [b if isinstance(b, Container) else container.unpack(_binary(b, "blob")) for b in given]
        size = sum(parsed.size for parsed in found)
        return self._decode_many(found, batch, Reporter(progress, "decode", size, 0, 1))

    def _decode_many(self, files: list[Container], batch: int, report: Reporter) -> list[bytes]:
        together: dict[tuple[str, tuple[int, ...], int], list[int]] = {}  # files that one batch can hold
        for i, parsed in enumerate(files):
            report.expect([chunk.tokens for chunk in parsed.chunks], parsed.size)
            if (s := parsed.settings) is not None:
                self.check(parsed)
                moves = max(sum(chunk.tokens for chunk in group.chunks) for group in parsed.groups) > s.context
                together.setdefault((s.site, s.fields, s.context if moves else MAX_CONTEXT), []).append(i)
        written: dict[int, list[np.ndarray]] = {}
        for (_, _, context), numbers in together.items():
            owners = [i for i in numbers for _ in files[i].groups]
            coded = encoded_groups(group for i in numbers for group in files[i].groups)
            site = self.site_in(files[numbers[0]])
            for i, tokens in zip(owners, self.engine.decode(self, site, coded, context, batch, report), strict=True):
                written.setdefault(i, []).append(tokens)
        return [b"".join(document_of(parsed, written.get(i, []), self.tokenizer)) for i, parsed in enumerate(files)]

    def decode_group(self, parsed: Container, numbers: list[int], batch: int = DEFAULT_BATCH) -> list[np.ndarray]:
        """The tokens of some groups of a file, by their numbers, int64 [tokens] each. Raises as `decode`."""
        assert parsed.settings is not None
        self.check(parsed)
        groups = parsed.groups
        coded = encoded_groups(groups[n] for n in numbers)
        silent = Reporter(None, "decode", 0, 0, 1)
        return list(decode_all(self.lm, self.site_in(parsed), coded, parsed.settings.context, batch, silent))

    def _decode(self, parsed: Container, batch: int, report: Reporter) -> Iterator[bytes]:
        written: Iterator[np.ndarray] = iter(())
        report.expect([chunk.tokens for chunk in parsed.chunks], parsed.size)
        if parsed.settings is not None:
            self.check(parsed)
            coded = encoded_groups(parsed.groups)
            written = self.engine.decode(self, self.site_in(parsed), coded, parsed.settings.context, batch, report)
        return document_of(parsed, written, self.tokenizer)

    # ---- frames

    def encode_frame(self, message: Data, settings: FrameSettings = FrameSettings()) -> bytes:  # noqa: B008 (frozen)
        """A message as a frame: `encode_frames` of one."""
        return self.encode_frames([message], settings)[0]

    def decode_frame(self, frame: bytes, settings: FrameSettings = FrameSettings()) -> bytes:  # noqa: B008 (frozen)
        """The message of a frame, as bytes: `decode_frames` of one."""
        return self.decode_frames([frame], settings)[0]

    def encode_frames(
        self,
        messages: Iterable[Data],
        settings: FrameSettings = FrameSettings(),  # noqa: B008 (frozen)
        *,
        progress: ProgressCallback | None = None,
    ) -> list[bytes]:
        """Messages (bytes, or text as UTF-8) as frames, in common batches: for one model, primer and settings.

        Each is as short as the LM, zstd or none makes it: 1 byte and the checksum longer than it was, at most. They are
        not decoded to verify. Raises EncodeError for settings out of range and for messages that are too long.
        """
        data = [as_bytes(message, "message") for message in _several(messages, "messages")]
        return frames.encode(self.lm, self.tokenizer, data, settings, progress)

    def decode_frames(
        self,
        packed: Iterable[bytes],
        settings: FrameSettings = FrameSettings(),  # noqa: B008 (frozen)
        *,
        batch: int = DEFAULT_BATCH,
        progress: ProgressCallback | None = None,
    ) -> list[bytes]:
        """The messages of frames, as bytes, decoded side by side. batch: so many of them at one time.

        Raises FormatError or ChecksumError where one is damaged, or was made with another model, primer or setting: a
        checksum of 0 bytes notices little of that.
        """
        _check_batch(batch)
        given = [_binary(frame, "frame") for frame in _several(packed, "packed")]
        return frames.decode(self.lm, self.tokenizer, given, settings, batch, progress)

    def site_in(self, parsed: Container) -> Site:
        """What reads the memories of a file. Raises FormatError."""
        assert parsed.settings is not None
        if parsed.settings.site == "readout":
            from memcodec.memory.readout import ReadoutSite

            return ReadoutSite.in_header(parsed.settings.fields)
        from memcodec.memory.prompt import PromptSite

        return PromptSite.in_header(parsed.settings.fields, self.lm.architecture.hidden)

    def differs(self, parsed: Container) -> bool:
        """Whether a file needs another model."""
        return parsed.model is not None and parsed.model.identity != self.model.identity

    def check(self, parsed: Container) -> None:
        """Raise ModelMismatchError where a file needs another model, PrimerMismatchError where another primer."""
        if parsed.model is not None and self.differs(parsed):
            raise ModelMismatchError(
                f"the file needs model {parsed.model.name!r} ({parsed.model.identity.hex()}); {self.name!r} is "
                f"{self.model.identity.hex()}: pass the right one as --model"
            )
        if parsed.settings is not None:
            check_primer(parsed.settings.primer, self.primer)

    # ---- what can be measured, and memories by themselves

    def estimate(self, size: int, context: Context = "auto", batch: int = DEFAULT_BATCH, verify: bool = True) -> float:
        """About how many seconds so many bytes of text take to encode, from a short look at the LM's speed here."""
        tokens = np.arange(PASS_ROWS // 2) % self.lm.vocabulary
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            self.token_bits(tokens)
            seconds.append(time.perf_counter() - start)
        rows = _rows(size, DEFAULT_CHUNK_TOKENS, context, batch, verify)
        return size / 4 * min(seconds) / len(tokens) * (_FIT_TIME["readout"] + (1 + _ALONE / rows if rows else 0))

    def fit_memory(self, text: str, site: Prompt | None = None, callback: Callable[[Any], None] | None = None) -> Any:
        """Fit one memory to one text: a reversible sentence embedding (`MemoryEmbedding`), without a file around it.

        site: the settings of the fit; callback: called with a `FitStep` after every step. In floating point, for any
        Hugging Face causal LM. A fit that ends short of exact is returned all the same. Raises EncodeError.
        """
        from memcodec.memory.embedding import MemoryEmbedding

        return MemoryEmbedding.fit_to(self, text, site or Prompt(), callback)

    def bound(self, data: Data, chunk_tokens: int = DEFAULT_CHUNK_TOKENS, context: Context = "auto") -> float:
        """The bound in bytes: the sum of -log2 p(token) of the exact LM over the document's chunks, over 8.

        Each token sees what it sees in a file with this context. Stored spans count with what zstd makes of them.
        Raises EncodeError.
        """
        check_settings(Readout(), chunk_tokens, 1, context)
        self._check_chunk_tokens(chunk_tokens, 0)
        positions = self.lm.positions - len(self.lm.prefix)
        cutting = Cutting(chunk_tokens, context, positions, self.lm.vocabulary)
        total = 0.0
        for block in read_blocks(as_source(data, "data"), self.tokenizer, cutting):
            total += sum(zstd_size(span.data) for span in block.spans if isinstance(span, Stored))
            for group in block.plan.groups:
                tokens = np.concatenate(group)
                for w in windows(len(tokens), visible_tokens(context, positions)):
                    total += float(self.token_bits(tokens[w.start : w.last], w.first - w.start).sum()) / 8
        return total

    def token_bits(self, tokens: np.ndarray, skip: int = 0) -> np.ndarray:
        """-log2 p of tokens of one sequence under the exact LM, float64, all but the first `skip` of them."""
        sequences = self.lm.new_sequences(1, len(self.lm.prefix) + len(tokens), len(tokens))
        if len(tokens) > 1:
            sequences.forward([SequenceInput(0, tokens[:-1])])
        found = []
        starts = [0, *range(1, len(tokens), HEAD_ROWS)]
        for start, end in pairwise([*starts, len(tokens)]):
            start = max(start, skip)
            if start >= end:
                continue
            logits = sequences.logits(slice(start - 1, end - 1)) if start else self.lm.start.logits[None]
            units = logits[:, : self.lm.vocabulary].astype(np.float64)
            nats = units * (math.log(2) / arithmetic.UNIT)
            top = nats.max(axis=1)
            total = top + np.log(np.exp(nats - top[:, None]).sum(axis=1))
            found.append((total - nats[np.arange(end - start), tokens[start:end]]) / math.log(2))
        return np.concatenate(found) if found else np.empty(0)


def as_bytes(data: Any, name: str) -> bytes:
    """The bytes of anything bytes-like, or of text as UTF-8. Raises EncodeError, TypeError that names what it is."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise EncodeError(
                f"{name}: text with a lone surrogate at {error.start:,} is no UTF-8: give bytes"
            ) from None
    try:
        return memoryview(data).tobytes()
    except TypeError:
        raise TypeError(f"{name}: give bytes, anything bytes-like, or str, not {type(data).__name__}") from None


def _binary(data: Any, name: str) -> bytes:
    """The same of what is no text."""
    if isinstance(data, str):
        raise TypeError(f"{name}: give bytes, or anything bytes-like, not str")
    return as_bytes(data, name)


def _several(given: Any, name: str) -> Any:
    """Raise TypeError for one text or one document's bytes in the place of many."""
    if isinstance(given, str | bytes | bytearray | memoryview):
        raise TypeError(f"{name}: give a list of them, not one {type(given).__name__}")
    return given


def _undecodable(error: Exception) -> MachineError:
    return MachineError(f"what was encoded does not decode here ({error}): nothing was written")


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise EncodeError(f"batch {batch}: give 1 or more groups")


def check_primer(needed: bytes, primer: "Primer | None") -> None:
    """Raise PrimerMismatchError where what is at hand is not what is needed, by the first bytes of its hash."""
    given = primer.identity if primer else b""
    if needed and needed != given:
        what = f"the one given is {given.hex()}" if given else "none is given"
        raise PrimerMismatchError(f"the file needs the primer {needed.hex()}; {what}: pass it as --primer")


def as_source(data: Any, name: str) -> Source:
    """What can be read in pieces, of anything bytes-like, text, or a file open for reading. Raises as `as_bytes`."""
    if isinstance(data, Source):
        return data
    if isinstance(data, io.TextIOBase):
        raise TypeError(f"{name}: the file is open for text: open it with mode 'rb'")
    return Source(data) if hasattr(data, "read") else Source.of(as_bytes(data, name))


def without_model(source: Source) -> bytes | None:
    """The file of a document that no LM is needed for; None where there is text."""
    if has_text(source):
        return None
    blob = container.pack(stored(source))
    source.check_unchanged()
    return blob


def check_settings(site: Readout | Prompt, chunk_tokens: int, batch: int, context: Context = "auto") -> None:
    """Raise EncodeError for settings out of range, TypeError for what is no settings of a site."""
    if not isinstance(site, Readout | Prompt):
        raise TypeError(f"site: give memcodec.Readout(...) or memcodec.Prompt(...), not {type(site).__name__}")
    site.check()
    if not 1 <= chunk_tokens <= MAX_CHUNK_TOKENS:
        raise EncodeError(f"chunk tokens {chunk_tokens}: give 1 to {MAX_CHUNK_TOKENS}")
    if isinstance(site, Readout) and site.effort * chunk_tokens > _MOST_STATES:
        raise EncodeError(
            f"effort {site.effort} with {chunk_tokens} tokens a chunk: give {_MOST_STATES // chunk_tokens} at most"
        )
    if batch < 1:
        raise EncodeError(f"batch {batch}: give 1 or more groups")
    if context not in ("auto", "max") and not (type(context) is int and 0 <= context <= MAX_CONTEXT):
        raise EncodeError(f"context {context!r}: give auto, max, or 0 to {MAX_CONTEXT:,} tokens")


def _rows(size: int, chunk_tokens: int, context: Context, batch: int, verify: bool) -> int:
    """About how many groups of a document are verified side by side; 0: none are."""
    tokens = size // 4 + 1
    group = GROUP_CONTEXTS * context if isinstance(context, int) else tokens
    if context in ("auto", 0):
        group = chunk_tokens if context == 0 or tokens < AUTO_GROUPS * chunk_tokens else AUTO_TOKENS
    return min(batch, -(-tokens // group)) if verify else 0


class _Stages:
    """Which part of an encoder's time goes into which stage."""

    def __init__(self, callback: ProgressCallback | None, size: int, site: Readout | Prompt, rows: int) -> None:
        """rows: groups that are verified side by side; 0, none."""
        self._callback = callback
        self._size = size
        own = _FIT_TIME["readout" if isinstance(site, Readout) else "prompt"]
        border = own / (own + 1 + _ALONE / rows) if rows else 1.0
        self._shares = {"fit": border, "verify": 1 - border}
        self._done = {"fit": 0.0, "verify": 0.0}

    def fit(self) -> Reporter:
        """Of fitting all chunks."""
        return self._stage("fit")

    def verify(self) -> Reporter:
        """Of decoding those that were not stored."""
        return self._stage("verify")

    def _stage(self, name: str) -> Reporter:
        return Reporter(self._report if self._callback else None, name, self._size, 0, 1)

    def _report(self, progress: Progress) -> None:
        """What a stage has done, as a part of the whole: with many documents, the stages take turns."""
        assert self._callback is not None
        self._done[progress.stage] = progress.done
        whole = sum(self._shares[stage] * done for stage, done in self._done.items())
        self._callback(replace(progress, done=min(whole, 1.0)))


def _expected(blocks: Iterable[Block], report: Reporter) -> Iterator[Block]:
    for block in blocks:
        report.expect(block.lengths, block.size)
        yield block


def _worthwhile(blocks: Iterable[Block], settings: Prompt, site: Site) -> Iterator[Block]:
    """Raise EncodeError where vectors alone are larger than the file that stores all: a fit would be for nothing."""
    from memcodec.memory.vectors import vector_bytes

    bits, dimensions = site.fields
    size = (settings.vectors or 1) * vector_bytes(dimensions, bits)
    chunks = 0
    for block in blocks:
        chunks = len(block.lengths) + (chunks if block.start else 0)
        if chunks and chunks * size >= (whole := len(container.pack(stored(block.source)))):
            raise EncodeError(
                f"{chunks} chunks with {size:,} bytes of vectors each: stored, the file has {whole:,} bytes; use "
                "--pure for vectors whatever their size, fewer --bits, or longer chunks"
            )
        yield block


def _check_pure(made: Container) -> None:
    """Raise EncodeError where a chunk has corrections."""
    chunks = made.segments  # one each
    failed = [str(n) for n, chunk in enumerate(chunks) if chunk.corrections]
    if failed:
        more = ", ..." if len(failed) > 10 else ""
        raise EncodeError(
            f"{len(failed)} of {len(chunks)} chunks need corrections (chunk {', '.join(failed[:10])}{more}): "
            "give shorter chunks, more vectors or more steps"
        )
