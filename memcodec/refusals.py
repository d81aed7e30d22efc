"""Checks that refuse a document that cannot be encoded with its settings, before the work if that is possible."""

from collections.abc import Iterable, Iterator

from memcodec.container import assembly, layout
from memcodec.container.layout import Container
from memcodec.container.write import pack
from memcodec.document.blocks import Block, Cutting, read_blocks
from memcodec.document.source import Source
from memcodec.errors import EncodeError
from memcodec.memory.vectors import vector_bytes
from memcodec.models.loaded import LoadedModel
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.settings import EncodeSettings, Prompt


def check_positions(model: LoadedModel, settings: EncodeSettings) -> None:
    """Raise EncodeError if a chunk, with its vectors, has more tokens than the model has positions."""
    vectors = (settings.site.vectors or 1) if isinstance(settings.site, Prompt) else 0
    if (chunk_tokens := settings.chunk_length(model.positions)) + vectors > model.positions:
        raise EncodeError(
            f"chunk tokens {chunk_tokens}: this model has {model.lm.positions} positions, prefix included"
        )


def check_chunk_count(source: Source, tokenizer: ByteTokenizer, cutting: Cutting) -> None:
    """Raise EncodeError if a document has more chunks than a file may have."""
    if source.size <= layout.MAX_CHUNKS * cutting.chunk_tokens // 2:  # has fewer tokens than bytes
        return
    count = sum(len(block.lengths) for block in read_blocks(source, tokenizer, cutting))
    if count > layout.MAX_CHUNKS:
        raise EncodeError(
            f"{source.size:,} bytes are {count:,} chunks, and a file has {layout.MAX_CHUNKS:,} at most: cut the text "
            "into several files, or give longer chunks (chunk tokens)"
        )


def worthwhile(blocks: Iterable[Block], settings: Prompt, dimensions: int) -> Iterator[Block]:
    """The same blocks. Raises EncodeError as soon as the vectors alone need more bytes than storing the document.

    dimensions: of a vector.
    """
    size = (settings.vectors or 1) * vector_bytes(dimensions, settings.bits)
    chunks = 0
    for block in blocks:
        chunks = len(block.lengths) + (chunks if block.start else 0)
        if chunks and assembly.STORE_SMALLER and chunks * size >= (whole := len(pack(assembly.stored(block.source)))):
            raise EncodeError(
                f"{chunks} chunks with {size:,} bytes of vectors each: the file that stores the text has {whole:,} "
                "bytes; use a pure site (--pure) for vectors whatever their size, fewer bits (--bits), or longer chunks"
            )
        yield block


def check_pure(made: Container) -> None:
    """Raise EncodeError if a chunk has corrections, for `Prompt.pure`."""
    chunks = made.segments  # of one chunk each
    failed = [str(n) for n, chunk in enumerate(chunks) if chunk.corrections]
    if failed:
        more = ", ..." if len(failed) > 10 else ""
        raise EncodeError(
            f"{len(failed)} of {len(chunks)} chunks need corrections (chunk {', '.join(failed[:10])}{more}): "
            "give shorter chunks, more vectors or more steps"
        )
