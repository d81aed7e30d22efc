"""The whole path, and back: bytes -> spans -> groups of chunks -> memories and corrections -> container."""

import os
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, Unpack

import numpy as np

from memcodec import bound, container, estimate, frames, refusals
from memcodec.container import Container, Lost, ModelId, Needs, Settings, assembly
from memcodec.container.assembly import EncodedPart
from memcodec.decoding import sharing_batches, tokens_of, with_readable_memories
from memcodec.document.blocks import Block, BlockQueue, Cutting, read_blocks
from memcodec.document.inputs import Binary, Data, as_binary, as_bytes, as_many, as_source
from memcodec.document.plan import visible_tokens
from memcodec.document.source import Source
from memcodec.embedding import MemoryEmbedding
from memcodec.engines import check_engine, find_engine
from memcodec.engines.engine import Engine
from memcodec.engines.local import Local
from memcodec.errors import MemcodecError
from memcodec.frames import FrameSettings
from memcodec.groups import FIT_CHUNKS
from memcodec.lm.ahead import ending
from memcodec.lm.model import ExactLM
from memcodec.memory.sites import site_of
from memcodec.models import registry
from memcodec.models.loaded import LoadedModel, LoadOptions
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.primer import Primer, as_primer
from memcodec.progress import ByteProgress, ProgressCallback, Reporter
from memcodec.settings import DEFAULT_MODEL, EncodeOptions, EncodeSettings, Prompt, check_batch, check_device
from memcodec.storage.journal import Journal, journal_key
from memcodec.verification import Verifier

_VERIFIED_TOGETHER = 256  # documents of one batch of verification, at most


class Codec:
    """Encodes and decodes with a loaded model, a primer or none, and an engine.

    Load one, and use it often: several threads may share it. It pickles as what it was loaded from, and loads again
    where it is unpickled. model: the `LoadedModel`.
    """

    def __init__(self, model: LoadedModel) -> None:
        """Most callers want `Codec.load`."""
        self.model = model
        self.primer: Primer | None = None
        self.engine: Engine = Local()

    def __repr__(self) -> str:
        primed = f" with a primer of {len(self.primer.tokens)} tokens" if self.primer else ""
        return f"<memcodec.Codec of {self.name!r} on {self.model.device}{primed}>"

    @classmethod
    def load(
        cls, model: str | os.PathLike[str] = DEFAULT_MODEL, *, device: str = "auto", threads: int | None = None,
        kernels: str = "auto", progress: ByteProgress | None = None,
    ) -> "Codec":  # fmt: skip
        """Load a model by built-in name, local directory or Hugging Face id (or id@revision).

        device: "auto", "cpu", "cuda", "cuda:1", "mps" or "xpu"; threads: CPU threads, by default one per core; kernels:
        "numba" (CPU only), "triton", "torch" or "auto": implementations of the same arithmetic (docs/gpu.md). A model
        that the exact LM does not support is loaded for `fit_memory` alone. Raises ModelNotFoundError, MachineError,
        MissingDependencyError, EncodeError.
        """
        check_device(device)
        return cls(LoadedModel.load(registry.resolve(model, progress), device, threads, kernels, progress))

    def with_primer(self, primer: Primer | None) -> "Codec":
        """The same codec with another primer, which every group and frame sees as context, or without one (None).

        Shares the model. Raises ModelNotFoundError; EncodeError if the model has too few positions; ModelMismatchError
        if the primer was made for another model.
        """
        other = copy(self)
        other.primer = as_primer(primer)
        other.model = primer.put_before(self.model) if primer else self.model.with_primer_tokens()
        return other

    def with_engine(self, engine: "str | Engine") -> "Codec":
        """The same codec with another engine for groups: "local", "ray", or a `RayEngine` with settings.

        Shares the model. Raises EncodeError, MissingDependencyError; TypeError for anything else.
        """
        other = copy(self)
        other.engine = find_engine(engine) if isinstance(engine, str) else check_engine(engine)
        return other

    def __deepcopy__(self, _: object) -> "Codec":
        """A copy that shares the model, the primer and the engine: none of them changes."""
        return copy(self)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.model.name

    @property
    def tokenizer(self) -> ByteTokenizer:
        """The tokenizer of the model."""
        return self.model.tokenizer

    @property
    def lm(self) -> ExactLM:
        """The exact LM. Raises ModelNotFoundError if memcodec does not support the model's architecture."""
        return self.model.lm

    @property
    def floats(self) -> Any:
        """The same LM in floating point. Raises as `LoadedModel.floats`."""
        return self.model.floats

    # ---- encoding

    def encode(
        self, data: Data | BinaryIO | Source, *,
        journal: Journal | None = None, progress: ProgressCallback | None = None, **settings: Unpack[EncodeOptions],
    ) -> bytes:  # fmt: skip
        """Compress bytes, text (as UTF-8), or a file open for reading, to the bytes of a .memz file.

        With the readout site, the bytes are the same on every machine that has the same version of zstd; with the
        prompt site they may differ. journal: keeps encoded groups on disk, so that a second run continues after them.
        The settings:

        level: 1 (fast and large) to 9 (slow and small), by default 6, sets what is not given or is "auto"
        (docs/levels.md); site: where memories enter the LM, with its settings; chunk_tokens: 1 to 4096; context: the
        maximum number of tokens that the LM sees before a position: 0 for those of the same chunk only, "max" for as
        many as possible, "auto" (the default) for those of the groups of the level; verify: decode the result and
        compare, in full passes of the LM (True, the default, or "passes"), or step by step ("steps"), which takes
        longer; batch: groups decoded side by side in steps; references: write text that occurred before in the document
        as a reference, as by default.

        Raises EncodeError for settings out of range, and if chunks of a `pure` prompt need corrections; MachineError if
        the result does not decode to the input.
        """
        source = as_source(data, "data")
        chosen = EncodeSettings.of(**settings)
        if (blob := assembly.without_model(source)) is not None:
            return blob
        (blob,) = self._files([source], chosen, progress, journal)
        return blob

    def encode_many(
        self, documents: Iterable[Data | BinaryIO | Source], *, progress: ProgressCallback | None = None,
        **settings: Unpack[EncodeOptions],
    ) -> Iterator[bytes]:  # fmt: skip
        """The files of several documents, in order, each as soon as it is finished; settings as in `encode`.

        Groups are encoded and verified in common batches. Raises as `encode`, at the first document that fails, after
        the files of those before it that were finished.
        """
        chosen = EncodeSettings.of(**settings)
        sources = [as_source(data, "data") for data in as_many(documents, "documents")]
        return self._files(sources, chosen, progress)

    def _files(
        self, sources: list[Source], settings: EncodeSettings, progress: ProgressCallback | None,
        journal: Journal | None = None,
    ) -> Iterator[bytes]:  # fmt: skip
        """The files of documents, verified in batches."""
        stages = estimate.Stages(progress, sum(source.size for source in sources), settings)
        verifier = Verifier(self.model, self.engine, settings, len(sources) == 1, stages.verify)
        finished: list[tuple[Source, bytes]] = []
        groups = 0
        containers = self._containers(sources, settings, stages.fit, journal)
        with ending(containers):
            try:
                for source, made in containers:
                    if not settings.stores_text:
                        refusals.check_pure(made)
                    blob = container.pack(made)
                    finished.append((source, assembly.smaller_of(source, blob) if settings.stores_text else blob))
                    groups += len(made.groups)
                    full = groups >= (settings.batch or self.lm.capacity.sequences)
                    full = full or len(finished) in (_VERIFIED_TOGETHER, len(sources))
                    if full or not settings.verify:
                        complete, finished, groups = finished, [], 0
                        yield from verifier.verified(complete)
            except (MemcodecError, OSError):
                yield from verifier.verified(finished)  # those before the document that fails
                raise
        yield from verifier.verified(finished)

    def _containers(
        self, sources: list[Source], settings: EncodeSettings, report: Reporter, journal: Journal | None
    ) -> Iterator[tuple[Source, Container]]:
        """Documents with their containers. Raises EncodeError."""
        model, cutting = self.model, Cutting.of(self.model, settings)
        refusals.check_positions(model, settings)
        site = site_of(model.lm, settings.site, lambda: model.floats)
        for source in sources:
            refusals.check_chunk_count(source, model.tokenizer, cutting)
        alone = len(sources) == 1
        read: Iterator[Block] = chain.from_iterable(
            read_blocks(source, model.tokenizer, cutting, alone) for source in sources
        )
        if isinstance(settings.site, Prompt) and settings.stores_text:
            read = refusals.worthwhile(read, settings.site, model.lm.architecture.hidden)
        blocks = BlockQueue(estimate.announced(read, report))
        context = visible_tokens(cutting.context, cutting.positions)
        encode = partial(self.engine.encode, model, settings.site, context=context, report=report)
        if journal is None:
            encoded = encode(blocks.groups())
        else:
            fitted_together = FIT_CHUNKS if isinstance(settings.site, Prompt) else 1
            journal.begin(journal_key(sources[0], model, settings.site, cutting), fitted_together)
            encoded = journal.encoded(blocks.groups(), encode, lambda group: report.finish(group.lengths))
        parts, furthest = list[EncodedPart](), 1
        with ending(encoded):
            for block in blocks.blocks():
                parts += assembly.parts_of(block, encoded, model.tokenizer, settings.stores_text)
                furthest = max(furthest, block.plan.context)
                if block.last:
                    primer = self.primer.identity if self.primer else b""
                    written = Settings(site.name, site.fields, cutting.chunk_tokens, furthest, primer)
                    model_id = ModelId.of(model.name, model.identity)
                    yield block.source, assembly.container_of(block.source, parts, model_id, written)
                    parts, furthest = [], 1

    # ---- decoding

    def decode(self, blob: Binary, *, batch: int | None = None, progress: ProgressCallback | None = None) -> bytes:
        """Decompress the bytes of a .memz file, or of several concatenated ones.

        batch: groups decoded side by side. Raises FormatError, ChecksumError, ModelMismatchError; EncodeError for a
        batch out of range.
        """
        files = container.unpack_all(as_binary(blob, "blob"))
        return b"".join(piece for parsed in files for piece in self.decode_pieces(parsed, batch, progress))

    def decode_pieces(
        self, parsed: Container, batch: int | None = None, progress: ProgressCallback | None = None
    ) -> Iterator[bytes]:
        """The document of an unpacked file, piece by piece. Raises as `decode`.

        The whole is checked after the last piece: do not rely on any piece before the iterator has ended.
        """
        check_batch(batch)
        return self._pieces(parsed, batch, Reporter(progress, "decode", parsed.size))

    def decode_many(
        self, blobs: Iterable[Binary | Container], *, batch: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> list[bytes]:  # fmt: skip
        """The documents of several files, whose groups are decoded side by side. Raises as `decode`."""
        check_batch(batch)
        given = as_many(blobs, "blobs")
        files = [b if isinstance(b, Container) else container.unpack(as_binary(b, "blob")) for b in given]
        return self._documents(files, batch, Reporter(progress, "decode", sum(parsed.size for parsed in files)))

    def salvage(
        self, blob: Binary, *, batch: int | None = None, progress: ProgressCallback | None = None
    ) -> Iterator[bytes | Lost]:
        """What can be read of a damaged file, in order: pieces of the document, and `Lost` for what is missing.

        A chunk is accepted if it matches its checksum of 8 bits, so about one in 256 damaged chunks is returned with
        wrong bytes. Of concatenated files, the first: `memcodec.container.members_of` cuts them. Raises FormatError if
        the index itself is damaged, ModelMismatchError.
        """
        check_batch(batch)
        parsed = container.unpack(as_binary(blob, "blob"), damaged=True)
        codec = self if parsed.needs is None else codec_for(parsed.needs, self)
        parsed = with_readable_memories(codec.model, parsed)
        return assembly.salvage_of(parsed, codec.tokens(parsed, batch, progress=progress), self.tokenizer)

    def tokens(
        self, parsed: Container, batch: int | None = None, numbers: Iterable[int] | None = None,
        progress: ProgressCallback | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """The token ids of the groups of a file, int64 [tokens] each, in order. numbers: of only these groups.

        They are not compared with the checksums: `memcodec.container.assembly` does that. Raises FormatError,
        ModelMismatchError.
        """
        if parsed.needs is None:
            return iter(())
        groups = parsed.groups if numbers is None else [parsed.groups[n] for n in numbers]
        lengths = [chunk.tokens for group in groups for chunk in group.chunks]
        report = Reporter(progress, "decode", parsed.size, lengths)
        codec = codec_for(parsed.needs, self)
        return tokens_of(codec.model, codec.engine, [(parsed, groups)], batch, report)

    def _pieces(self, parsed: Container, batch: int | None, report: Reporter) -> Iterator[bytes]:
        """The document of a file, piece by piece."""
        report.expect([chunk.tokens for chunk in parsed.chunks], parsed.size)
        tokens: Iterator[np.ndarray] = iter(())
        if parsed.needs is not None:
            codec = codec_for(parsed.needs, self)
            tokens = tokens_of(codec.model, codec.engine, [(parsed, parsed.groups)], batch, report)
        return assembly.document_of(parsed, tokens, self.tokenizer)

    def _documents(self, files: list[Container], batch: int | None, report: Reporter) -> list[bytes]:
        """The documents of several files, decoded in common batches where their settings allow it."""
        for parsed in files:
            report.expect([chunk.tokens for chunk in parsed.chunks], parsed.size)
        tokens: dict[int, list[np.ndarray]] = {}
        for numbers in sharing_batches(files):
            needs = files[numbers[0]].needs
            assert needs is not None
            codec = codec_for(needs, self)
            selected = [(files[i], files[i].groups) for i in numbers]
            owners = [i for i, (_, groups) in zip(numbers, selected, strict=True) for _ in groups]
            decoded = tokens_of(codec.model, codec.engine, selected, batch, report)
            for i, ids in zip(owners, decoded, strict=True):
                tokens.setdefault(i, []).append(ids)
        return [
            b"".join(assembly.document_of(parsed, tokens.get(i, []), self.tokenizer)) for i, parsed in enumerate(files)
        ]

    # ---- frames

    def encode_frame(self, message: Data, settings: FrameSettings = FrameSettings()) -> bytes:  # noqa: B008 (frozen)
        """One message as a frame: see `encode_frames`."""
        return self.encode_frames([message], settings)[0]

    def decode_frame(self, frame: bytes, settings: FrameSettings = FrameSettings()) -> bytes:  # noqa: B008 (frozen)
        """The message of one frame, as bytes: see `decode_frames`."""
        return self.decode_frames([frame], settings)[0]

    def encode_frames(
        self, messages: Iterable[Data], settings: FrameSettings = FrameSettings(), *,  # noqa: B008 (frozen)
        progress: ProgressCallback | None = None,
    ) -> list[bytes]:  # fmt: skip
        """Messages (bytes, or text as UTF-8) as frames, encoded in common batches.

        A frame is at most 1 byte and the checksum longer than its message. Frames are not decoded to verify them.
        Raises EncodeError for settings out of range and for messages that are too long.
        """
        data = [as_bytes(message, f"message {n}") for n, message in enumerate(as_many(messages, "messages"))]
        return frames.encode(self.model, data, settings, progress)

    def decode_frames(
        self, packed: Iterable[bytes], settings: FrameSettings = FrameSettings(), *,  # noqa: B008 (frozen)
        batch: int | None = None, progress: ProgressCallback | None = None,
    ) -> list[bytes]:  # fmt: skip
        """The messages of frames, as bytes. batch: messages decoded side by side.

        Raises FormatError or ChecksumError if a frame is damaged, or was made with another model, primer or setting;
        with a checksum of 0 bytes, most of that goes unnoticed.
        """
        check_batch(batch)
        given = [as_binary(frame, "frame") for frame in as_many(packed, "packed")]
        return list(frames.decode(self.model, given, settings, batch, progress))

    # ---- measurements, and memories without a file

    def estimate(self, size: int, **settings: Unpack[EncodeOptions]) -> float:
        """The approximate number of seconds to encode `size` bytes of text, from a short measurement of the LM."""
        return estimate.seconds_to_encode(self.model, size, EncodeSettings.of(**settings))

    def bound(self, data: Data, **settings: Unpack[EncodeOptions]) -> float:
        """The bound in bytes (`memcodec.bound`) of a document, with settings as in `encode`. Raises EncodeError."""
        chosen = EncodeSettings.of(**settings)
        refusals.check_positions(self.model, chosen)
        return bound.bound(self.model, as_source(data, "data"), chosen)

    def token_bits(self, tokens: np.ndarray, skip: int = 0) -> np.ndarray:
        """-log2 p of the tokens of one sequence, int64 [tokens], except the first `skip`: float64 [tokens - skip]."""
        return bound.token_bits(self.lm, tokens, skip)

    def fit_memory(
        self, text: str, site: Prompt | None = None, callback: Callable[[Any], None] | None = None
    ) -> MemoryEmbedding:
        """Fit one memory to one text: a reversible sentence embedding, without a file format around it.

        site: the settings of the fit; callback: called with a `FitStep` after every step. In floating point, for any
        Hugging Face causal LM. It may not reproduce the text. Raises EncodeError; MissingDependencyError without torch.
        """
        return MemoryEmbedding.fit_to(self.model, text, site or Prompt(), callback)


def codec_for(
    needs: Needs, codec: Codec | None = None, *, model: str | os.PathLike[str] | None = None,
    allow_download: bool = False, primer: Primer | None = None, **options: Unpack[LoadOptions],
) -> Codec:  # fmt: skip
    """The codec that a file (or an archive, or a column) needs: with its model, and with its primer or none.

    codec: a loaded one, whose model must be the right one. Without it a model is loaded: `model`, or the one that the
    file names, which is downloaded from the Hugging Face hub only with allow_download. primer: instead of the codec's;
    not used if the file needs none. options: as in `Codec.load`. Raises ModelNotFoundError, ModelMismatchError
    (PrimerMismatchError for the primer), MachineError.
    """
    as_primer(primer)
    if codec is None:
        check_device(options.get("device", "auto"))
        progress = options.get("progress")
        named = partial(registry.resolve_named, needs.model.name, allow_download)
        folder = registry.resolve(model, progress) if model else named(progress)
        codec = Codec(LoadedModel.load(folder, **options))
    needs.check_model(ModelId.of(codec.name, codec.model.identity))
    chosen = (primer or codec.primer) if needs.primer else None
    needs.check_primer(chosen.identity if chosen else b"")
    return codec if codec.primer == chosen else codec.with_primer(chosen)
