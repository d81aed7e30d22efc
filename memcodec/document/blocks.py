"""Documents, block by block: tokenized, cut into groups, and waiting to be encoded."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memcodec.document.plan import Plan, plan_groups, visible_tokens
from memcodec.document.references import Reference
from memcodec.document.repeats import Repeats
from memcodec.document.source import Source
from memcodec.document.spans import Stored, Text, cut_blocks, find_text, tokenize
from memcodec.errors import EncodeError
from memcodec.levels import GroupRule
from memcodec.models.loaded import LoadedModel
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.settings import Context, EncodeSettings


@dataclass(frozen=True)
class StoredSize:
    """A stored span without its bytes, which the source has. size: how many they are."""

    size: int


@dataclass(frozen=True)
class Block:
    """A piece of a document, `size` bytes from `start` on. last: whether the document ends with it.

    spans: its carried bytes, which begin at `carried` of those of the document; references: what it repeats.
    """

    source: Source
    start: int
    size: int
    carried: int
    spans: list[Text | Stored | StoredSize]
    references: list[Reference]
    plan: Plan
    last: bool

    @property
    def lengths(self) -> list[int]:
        """Tokens of each chunk."""
        return [len(tokens) for group in self.plan.groups for tokens in group]

    def without_bytes(self) -> "Block":
        """The same block without the bytes of its stored spans."""
        return replace(self, spans=[one if isinstance(one, Text) else StoredSize(one.size) for one in self.spans])


@dataclass(frozen=True)
class Cutting:
    """How documents are cut into references, chunks and groups for a model with this many positions and tokens."""

    chunk_tokens: int
    context: Context
    rule: GroupRule
    positions: int
    vocabulary: int
    references: bool

    @classmethod
    def of(cls, model: LoadedModel, settings: EncodeSettings) -> "Cutting":
        """The cutting for a model with these settings."""
        return cls(
            settings.chunk_length(model.positions), settings.chunk_context, settings.level.rule, model.positions,
            model.lm.vocabulary, settings.finds_references,
        )  # fmt: skip

    @property
    def seen_tokens(self) -> int:
        """About how many tokens of its group the LM sees before a token.

        A token of a short group, or of a chunk without context, sees half of it on average. A token of a long group
        sees as much as the context allows.
        """
        if self.context == 0:
            return self.chunk_tokens // 2
        longest = visible_tokens(self.context, self.positions)
        if self.context == "auto" and self.rule.longest is not None:
            return min(self.rule.longest // 2, longest)
        return longest


def read_blocks(source: Source, tokenizer: ByteTokenizer, cutting: Cutting, alone: bool = True) -> Iterator[Block]:
    """The blocks of a document, at least one. alone: no other documents are encoded in the same batches.

    Raises EncodeError for tokens that the LM does not know.
    """
    start = carried = 0
    repeats = Repeats(source, cutting.seen_tokens) if cutting.references else None
    for block in cut_blocks(source):
        found, references = find_text(block), list[Reference]()
        if repeats is not None:
            found, references = repeats.cut(found)
        spans = tokenize(found, tokenizer)
        runs = [span.tokens for span in spans if isinstance(span, Text)]
        if any(tokens.max() >= cutting.vocabulary for tokens in runs):
            raise EncodeError("the tokenizer of the model has tokens that the model does not have")
        whole = len(block) == source.size
        plan = plan_groups(
            runs, cutting.chunk_tokens, cutting.context, cutting.rule, cutting.positions, alone and whole
        )
        last = start + len(block) == source.size
        yield Block(source, start, len(block), carried, [*spans], references, plan, last)
        start += len(block)
        carried += len(block) - sum(one.size for one in references)
    if not source.size:
        yield Block(source, 0, 0, 0, [], [], Plan([], [], 1), True)


def located_chunks(blocks: Iterable[Block], tokenizer: ByteTokenizer) -> Iterator[tuple[int, np.ndarray]]:
    """The chunks of a document, int64 [tokens] each, in order, each after the carried byte where it begins."""
    for block in blocks:
        start, runs = block.carried, iter(block.plan.runs)
        for span in block.spans:
            if isinstance(span, Text):
                chunks = next(runs)
                for chunk, size in zip(chunks, tokenizer.sizes(chunks), strict=True):
                    yield start, chunk
                    start += size
            else:
                start += span.size


class BlockQueue:
    """Blocks, and the groups of these blocks, two streams that two threads may consume at different speeds.

    The blocks have no bytes of stored spans: while the encoder looks for more groups, any number of them may wait.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._unread = iter(blocks)
        self._blocks: deque[Block] = deque()
        self._groups: deque[list[np.ndarray]] = deque()
        self._reading = threading.Lock()
        self._error: BaseException | None = None

    def blocks(self) -> Iterator[Block]:
        """Each block; it is read now if `groups` has not reached it yet."""
        while self._has(self._blocks):
            yield self._blocks.popleft()

    def groups(self) -> Iterator[list[np.ndarray]]:
        """The chunks of each group of each block, int64 [tokens] each."""
        while self._has(self._groups):
            yield self._groups.popleft()

    def _has(self, queue: deque[Any]) -> bool:
        """Whether a stream goes on. Blocks are read until its queue has something, by one thread at a time."""
        while not queue:
            with self._reading:
                if queue:  # another thread has read it
                    break
                if self._error is not None:
                    raise self._error
                try:
                    block = next(self._unread, None)
                except BaseException as error:  # both streams end with it
                    self._error = error
                    raise
                if block is None:
                    return False
                self._groups.extend(block.plan.groups)
                self._blocks.append(block.without_bytes())
        return True
