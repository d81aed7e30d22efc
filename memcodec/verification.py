"""Comparing encoded files with their documents before they are returned."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from memcodec import container
from memcodec.container import Container, Segment
from memcodec.container.assembly import document_of, located_parts
from memcodec.decoding import known_tokens_of, sharing_batches, tokens_of
from memcodec.document.blocks import Cutting, located_chunks, read_blocks
from memcodec.document.source import Source
from memcodec.engines.engine import Engine
from memcodec.errors import ChecksumError, FormatError, MachineError, wrong_file
from memcodec.models.loaded import LoadedModel
from memcodec.progress import Reporter
from memcodec.settings import EncodeSettings


@dataclass(frozen=True)
class Verifier:
    """Decodes files that were just encoded with these settings, and compares them with their documents.

    In steps, they are decoded as anyone decodes them. In full passes, which take less time, the LM reads the tokens of
    the document, which is tokenized again, and each must be the one that the decoder chooses after those before it.
    alone: whether it is a single document, which is cut in another way than several.
    """

    model: LoadedModel
    engine: Engine
    settings: EncodeSettings
    alone: bool
    report: Reporter

    def verified(self, finished: list[tuple[Source, bytes]]) -> list[bytes]:
        """The files of documents, verified if the settings say so. Raises MachineError, EncodeError."""
        try:
            if self.settings.verify:
                self._verify(finished)
        except MachineError:
            _check_unchanged(finished)  # otherwise the machine would be blamed for a document that has changed
            raise
        _check_unchanged(finished)
        return [blob for _, blob in finished]

    def _verify(self, finished: list[tuple[Source, bytes]]) -> None:
        """Verify files, in common batches where their settings allow it."""
        try:
            files = [(source, container.unpack(blob)) for source, blob in finished]
            for _, parsed in files:
                self.report.expect([chunk.tokens for chunk in parsed.chunks], parsed.size)
            for numbers in sharing_batches([parsed for _, parsed in files]):
                together = [files[i] for i in numbers]
                tokens = self._tokens(together)
                for source, parsed in together:
                    _compare(source, document_of(parsed, tokens, self.model.tokenizer))
            for source, parsed in files:
                if parsed.settings is None:  # it has stored spans only
                    _compare(source, document_of(parsed, [], None))
        except (FormatError, ChecksumError) as error:
            raise wrong_file(f"the encoded file does not decode here ({error})") from error

    def _tokens(self, files: list[tuple[Source, Container]]) -> Iterator[np.ndarray]:
        """The token ids of the groups of files, int64 [tokens] each, as they are decoded."""
        selected = [(parsed, parsed.groups) for _, parsed in files]
        if self.settings.verify == "steps":
            return tokens_of(self.model, self.engine, selected, self.settings.batch, self.report)
        known = chain.from_iterable(self._known_groups(source, parsed) for source, parsed in files)
        return known_tokens_of(self.model, self.engine, selected, known, self.report)

    def _known_groups(self, source: Source, parsed: Container) -> Iterator[list[np.ndarray]]:
        """The chunks of each group of a file, int64 [tokens] each, as far as the document has chunks there."""
        cutting = Cutting.of(self.model, self.settings)
        blocks = read_blocks(source, self.model.tokenizer, cutting, self.alone)
        chunks = located_chunks(blocks, self.model.tokenizer)
        group: list[np.ndarray] = []
        for place in located_parts(parsed):
            part = place.part
            if not isinstance(part, Segment):
                continue
            if part.corrections is not None and group:
                yield group
                group = []
            following = (tokens for at, tokens in chunks if at >= place.start)  # without those that were stored
            group += islice(following, len(part.chunks))
        yield group


def _check_unchanged(finished: list[tuple[Source, bytes]]) -> None:
    """Raise EncodeError if a document was changed while it was encoded."""
    for source, _ in finished:
        source.check_unchanged()


def _compare(source: Source, pieces: Iterable[bytes]) -> None:
    """Raise MachineError if the decoded pieces are not the bytes of a document."""
    at = 0
    for piece in pieces:
        end = min(at + len(piece), source.size)
        if source.read(at, end) != piece:
            raise wrong_file("the encoded file decodes to other bytes here")
        at = end
    if at != source.size:
        raise wrong_file("the encoded file decodes to fewer bytes here")
