"""Documents that are read in pieces: the file does not depend on the source, and memory not on the size."""

import io
import os
import tempfile
import threading
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memcodec
from memcodec import Readout, container
from memcodec.codec import Codec
from memcodec.container import assembly
from memcodec.document import source, spans
from memcodec.document.blocks import BlockQueue, Cutting, StoredSize, read_blocks
from memcodec.document.source import Source
from memcodec.document.spans import Stored, cut_blocks
from memcodec.errors import EncodeError, MachineError
from memcodec.levels import LEVELS
from memcodec.settings import Context

from .conftest import TEXT, store_nothing

QUICK = Readout(0.1, 64)
MIXED = (
    TEXT.encode() * 4 + bytes(range(128, 256)) * 12 + ("Él dijo: mañana. 彼は黙っていた。🙂 " * 30).encode() + b"\xff"
)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "BLOCK_BYTES", 700)
    monkeypatch.setattr(spans, "_LINE", 50)
    monkeypatch.setattr(source, "PIECE_BYTES", 300)


@given(st.text(min_size=1, max_size=300), st.integers(4, 40))
def test_blocks_are_cut_between_characters(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "BLOCK_BYTES", size)
        patch.setattr(spans, "_LINE", 3)
        found = list(cut_blocks(Source.of(text.encode())))
        assert "".join(block.decode() for block in found) == text
        assert all(0 < len(block) <= size for block in found)


@given(st.binary(max_size=300), st.integers(4, 40))
def test_blocks_of_anything_add_up(data: bytes, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "BLOCK_BYTES", size)
        patch.setattr(spans, "_LINE", 3)
        assert b"".join(cut_blocks(Source.of(data))) == data


def test_blocks_end_with_a_line_where_one_is_near(small_blocks: None) -> None:
    data = (b"a line of thirty bytes or about\n" * 100) + b"x" * 2000
    found = list(cut_blocks(Source.of(data)))
    assert [len(block) for block in found[:4]] == [672] * 4 and found[4].startswith(b"a line")
    assert len(found[-2]) == 700


@pytest.mark.parametrize("context", [0, 60, "auto", "max"])
@pytest.mark.parametrize("stored", [True, False])
def test_documents_of_several_blocks_round_trip(
    tiny: Codec, small_blocks: None, monkeypatch: pytest.MonkeyPatch, context: Context, stored: bool
) -> None:
    """Stored spans of adjacent blocks become one, and nothing depends on the batch."""
    if not stored:
        store_nothing(monkeypatch)
    blob = tiny.encode(MIXED, site=QUICK, chunk_tokens=50, context=context)
    assert tiny.decode(blob, batch=3) == MIXED
    if not stored:
        parsed = container.unpack(blob)
        kinds = [isinstance(part, container.StoredSpan) for part in parsed.parts]
        assert sum(kinds) == 2 and kinds[-1]
        expected = {0: len(parsed.chunks), "max": 4}
        assert len(parsed.groups) == expected.get(context, len(parsed.groups)) > 3


def test_groups_are_taken_ahead_of_their_blocks_and_behind(tiny: Codec, small_blocks: None) -> None:
    cutting = Cutting(50, 0, LEVELS[6].rule, 400, 1 << 20, False)
    known = [block.lengths for block in read_blocks(Source.of(MIXED), tiny.tokenizer, cutting)]
    assert [] in known and len(known) > 4
    for ahead in (0, 5, 1000):
        both = BlockQueue(read_blocks(Source.of(MIXED), tiny.tokenizer, cutting))
        groups = both.groups()
        taken = list(islice(groups, ahead))
        found = []
        for block in both.blocks():
            found.append(block)
            taken += [next(groups) for _ in range(max(0, sum(len(b.plan.groups) for b in found) - len(taken)))]
        assert [block.lengths for block in found] == known and [[len(c) for c in g] for g in taken] == [
            [n] for lengths in known for n in lengths
        ]
        assert len(taken) == sum(map(len, known)) and next(groups, None) is None
        assert [block.last for block in found] == [False] * (len(known) - 1) + [True]
        assert sum(block.size for block in found) == len(MIXED)


def open_pipe(data: bytes) -> BinaryIO:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(data)

    threading.Thread(target=write, daemon=True).start()
    return os.fdopen(reading, "rb")


def test_a_file_a_pipe_and_bytes_are_the_same(tiny: Codec, small_blocks: None, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"not this" + MIXED)
    blob = tiny.encode(MIXED, site=QUICK, verify=False)
    with path.open("rb") as file:
        file.seek(8)
        assert tiny.encode(file, site=QUICK) == blob
        assert not file.closed
    assert tiny.encode(io.BytesIO(MIXED), site=QUICK) == blob
    with open_pipe(MIXED) as pipe:
        assert tiny.encode(pipe, site=QUICK) == blob
    with open_pipe(b"") as pipe:
        assert tiny.decode(tiny.encode(pipe)) == b""


def test_an_object_that_has_only_read_is_a_pipe(tiny: Codec) -> None:
    class Reader:
        def __init__(self, data: bytes) -> None:
            self.read = io.BytesIO(data).read

    assert tiny.encode(Reader(MIXED), site=QUICK) == tiny.encode(MIXED, site=QUICK)  # type: ignore[arg-type]


def test_a_file_open_for_text_is_refused(tiny: Codec) -> None:
    with pytest.raises(TypeError, match="mode 'rb'"):
        tiny.encode(io.StringIO("text"))  # type: ignore[arg-type]


def test_a_file_that_changes_is_noticed(tiny: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text(TEXT)
    with path.open("rb") as file:
        source = Source(file)
        path.write_text(TEXT + "more")
        with pytest.raises(EncodeError, match="x: changed while it was read"):
            tiny.encode(source, site=QUICK)
    path.write_text(TEXT)
    with path.open("rb") as file:
        source = Source(file)
        path.write_text(TEXT[:-10])
        with pytest.raises(EncodeError, match="x: became shorter while it was read"):
            tiny.encode(source, site=QUICK)
    real = assembly.container_of
    errors: dict[bool, tuple[type[Exception], str]] = {
        True: (EncodeError, "x: changed while it was read"),
        False: (MachineError, r"other (bytes|chunks)"),
    }
    for has_other_time, (kind, message) in errors.items():
        path.write_text(TEXT)
        with path.open("rb") as file:
            source, times = Source(file), path.stat()

            def meanwhile(
                *parts: Any, later: int = has_other_time * 10**9, times: os.stat_result = times
            ) -> container.Container:
                made = real(*parts)
                path.write_text(TEXT[:-2] + "!\n")
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + later))
                return made

            monkeypatch.setattr(assembly, "container_of", meanwhile)
            with pytest.raises(kind, match=message):
                tiny.encode(source, site=QUICK)


def test_what_is_spooled_stays_in_memory(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for its number moved even the smallest pipe, and each file that is written, to disk."""
    moved = list[object]()
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda file: moved.append(file))
    read, write = os.pipe()
    os.write(write, TEXT.encode())
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = Source(pipe)
        found.check_unchanged()
        assert found.read(0, found.size) == TEXT.encode()
    with memcodec.open(io.BytesIO(), "w", codec=tiny, site=QUICK) as file:
        file.write(TEXT.encode())
    assert moved == []


def test_a_file_object_needs_no_number(tiny: Codec) -> None:
    class Bare:
        """The methods of a file that reading takes, without `fileno`."""

        def __init__(self) -> None:
            file = io.BytesIO(TEXT.encode())
            self.read, self.seek, self.tell = file.read, file.seek, file.tell

    bare: Any = Bare()
    assert tiny.decode(tiny.encode(bare, site=QUICK)) == TEXT.encode()


def test_memory_does_not_follow_the_document(
    tiny: Codec, small_blocks: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Except for the compressed data. Python does not count the memory of the LM itself."""
    store_nothing(monkeypatch)
    path = tmp_path / "x"
    peaks = []
    for count in (80, 320):
        path.write_bytes(TEXT.encode() * count)
        with path.open("rb") as file:
            tracemalloc.start()
            blob = tiny.encode(file, site=Readout(0), verify=False)
            peaks.append(tracemalloc.get_traced_memory()[1] - 20 * len(blob))
            tracemalloc.stop()
        pieces = tiny.decode_pieces(container.unpack(blob))
        assert max(map(len, pieces)) < 4000
    assert peaks[1] < peaks[0] + 200_000


def test_blocks_that_wait_hold_no_stored_bytes(tiny: Codec, small_blocks: None) -> None:
    """The encoder looks for more groups through all that is stored after a text."""
    text, noise = TEXT.encode() * 3, bytes(range(128, 256)) * 800
    cutting = Cutting(50, "auto", LEVELS[6].rule, 400, 1 << 20, False)
    blocks = list(read_blocks(Source.of(text + noise), tiny.tokenizer, cutting))
    queue = BlockQueue(blocks)
    assert list(queue.groups())  # reads all blocks
    spans = [span for block in queue.blocks() for span in block.spans]
    assert len(spans) > 100 and not any(isinstance(span, Stored) for span in spans)
    stored = [span.size for span in spans if isinstance(span, StoredSize)]
    assert stored == [span.size for block in blocks for span in block.spans if isinstance(span, Stored)]
    assert sum(stored) > len(noise) - 1000
