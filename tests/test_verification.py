"""Verification: in full passes and in steps, it accepts what decodes to the document, and notices everything else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memcodec import Archive, Prompt, Readout, container, groups
from memcodec.codec import Codec
from memcodec.coding import corrections
from memcodec.coding.corrections import EncodedGroup
from memcodec.coding.steering import Steering
from memcodec.container import Container
from memcodec.document import repeats
from memcodec.errors import EncodeError, MachineError
from memcodec.groups import decode_all, encode_groups, verify_all
from memcodec.lm.cpu import CpuSequences
from memcodec.lm.sequences import ON_CPU
from memcodec.memory.readout import ReadoutSite
from memcodec.passes import Known, passes
from memcodec.primer import Primer
from memcodec.progress import Reporter
from memcodec.settings import VERIFY, Context, SiteSettings, Verify

from .conftest import TEXT, Run, store_nothing

LINES = (TEXT * 3).encode()
QUICK = Readout(0.2, 64)
SILENT = Reporter(None, "verify")


# ---- what is right is accepted


def primed(codec: Codec) -> Codec:
    tokens = codec.tokenizer.encode("The quick brown fox sells sea shells. ")
    return codec.with_primer(Primer(codec.tokenizer.decode(tokens), tokens))


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize(
    ("site", "context"),
    [
        (QUICK, 0),
        (QUICK, "auto"),
        (QUICK, "max"),
        (QUICK, 1),
        (QUICK, 70),
        (Readout(0), "auto"),
        (Prompt(None, 1, 3), 0),
    ],
)
def test_what_decodes_to_the_document_is_accepted(
    tiny: Codec, monkeypatch: pytest.MonkeyPatch, verify: Verify, site: SiteSettings, context: Context
) -> None:
    store_nothing(monkeypatch)
    data = LINES + b"\xff\xfe" * 100 + LINES if site == QUICK else LINES
    blob = tiny.encode(data, site=site, chunk_tokens=60, context=context, verify=verify)
    assert container.unpack(blob).chunks
    assert blob == tiny.encode(data, site=site, chunk_tokens=60, context=context, verify=False)


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("kind", ["llama3", "mistral", "qwen2", "qwen3", "gpt2"])
def test_with_every_architecture_and_a_primer(
    tiny_folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str, verify: Verify
) -> None:
    store_nothing(monkeypatch)
    plain = Codec.load(str(tiny_folders(kind)), device="cpu")
    for codec in (plain, primed(plain)):
        blob = codec.encode(LINES, site=QUICK, chunk_tokens=50, verify=verify)
        assert container.unpack(blob).chunks and codec.decode(blob) == LINES


@pytest.mark.parametrize("verify", VERIFY)
def test_documents_in_common_batches(tiny: Codec, monkeypatch: pytest.MonkeyPatch, verify: Verify) -> None:
    """With some that are stored, wholly or in part, so that their groups are not those that were encoded."""
    documents = [LINES, b"", b"\xff" * 500, LINES[:300], b"the same line again\n" * 40 + LINES, LINES * 2]
    for is_stored in (True, False):
        if not is_stored:
            store_nothing(monkeypatch)
        blobs = list(tiny.encode_many(documents, site=QUICK, chunk_tokens=50, verify=verify))
        assert tiny.decode_many(blobs) == documents
        assert blobs == list(tiny.encode_many(documents, site=QUICK, chunk_tokens=50, verify=False))


@pytest.mark.parametrize("context", [1, 2, 7, 40, 1000])
def test_passes_cover_each_position_once_with_the_same_logits(tiny: Codec, context: int) -> None:
    tokens = tiny.tokenizer.encode(TEXT * 2)
    lengths = [1, 97, 3, 60, 1, 2]
    vectors = np.ones((3, tiny.lm.architecture.hidden), dtype=np.float32) if context == 1000 else None
    known = [Known(tokens[i : i + n], vectors) for i, n in enumerate(lengths)]

    def logits_of(rows: int) -> list[dict[int, bytes]]:
        found: list[dict[int, bytes]] = [{} for _ in known]
        for one in passes(tiny.lm, known, context, rows):
            for runs, logits in one.blocks(one.runs):
                assert len(logits) == sum(run.count for run in runs)
                waiting = iter(logits[:, : tiny.lm.vocabulary])
                for run in runs:
                    for position in range(run.position, run.position + run.count):
                        assert position == len(found[run.slot])  # ascending, and none twice
                        found[run.slot][position] = next(waiting).tobytes()
        return found

    whole = logits_of(400)
    assert [len(one) for one in whole] == lengths
    for rows in (1, 6, 50):
        assert logits_of(rows) == whole


def encoded(codec: Codec, chunks: list[list[np.ndarray]], context: int) -> tuple[ReadoutSite, list[EncodedGroup]]:
    site = ReadoutSite(200, 128, Steering.of(codec.lm.head), codec.lm.team)
    return site, list(encode_groups(codec.lm, site, chunks, context))


@pytest.mark.parametrize("context", [1, 30, 1000])
def test_groups_decode_to_the_same_tokens(tiny: Codec, context: int) -> None:
    tokens = tiny.tokenizer.encode(TEXT * 3)
    chunks = [[tokens[i : i + 20], tokens[i + 20 : i + 21 + 9 * i]] for i in range(19)]
    site, coded = encoded(tiny, chunks, context)
    found = list(verify_all(tiny.lm, site, coded, chunks, context, SILENT))
    decoded = list(decode_all(tiny.lm, site, coded, context, 64, SILENT))
    assert len(found) == len(chunks)
    assert all(map(np.array_equal, found, decoded))


# ---- what is wrong is noticed


def broken(change: Callable[[Container], Container]) -> Callable[[pytest.MonkeyPatch], None]:
    """Changes the container before it is packed."""

    def install(monkeypatch: pytest.MonkeyPatch) -> None:
        pack = container.pack
        monkeypatch.setattr(container, "pack", lambda made: pack(change(made)))

    return install


def in_segment(made: Container, **changes: Any) -> Container:
    """The container with another last segment of those that begin a group."""
    number = max(i for i, part in enumerate(made.parts) if getattr(part, "corrections", None) is not None)
    return replace(
        made, parts=tuple(replace(part, **changes) if i == number else part for i, part in enumerate(made.parts))
    )


def flip_a_correction(made: Container) -> Container:
    data = bytearray([part for part in made.segments if part.corrections is not None][-1].corrections or b"")
    data[len(data) // 2] ^= 1
    return in_segment(made, corrections=bytes(data))


def cut_a_correction(made: Container) -> Container:
    data = [part for part in made.segments if part.corrections is not None][-1].corrections or b""
    return in_segment(made, corrections=data[: len(data) // 2])


def flip_a_memory(made: Container) -> Container:
    first, *others = [part for part in made.segments if part.corrections is not None][-1].chunks
    memory = bytes([first.memory[0] ^ 2]) + first.memory[1:]
    return in_segment(made, chunks=(replace(first, memory=memory), *others))


def tilt_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder alone: a factor of all moves is a factor of the tilt."""

    class Tilted(corrections.Encoder):
        def __init__(self, steering: Steering, share: int) -> None:
            super().__init__(steering._replace(unit=steering.unit * 1.25), share)

    monkeypatch.setattr(corrections, "Encoder", Tilted)


def code_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coder itself: it ends a group in another way."""
    finish = corrections.Encoder.finish
    monkeypatch.setattr(corrections.Encoder, "finish", lambda self: b"\x5a" + finish(self))


def err_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The LM computes other logits at one position, in the second block of logits only."""
    real = CpuSequences.logits
    calls: list[None] = []

    def logits(self: CpuSequences, rows: Any) -> np.ndarray:
        found = real(self, rows)
        calls.append(None)
        if len(calls) == 2:
            found[-1] = np.roll(found[-1], 7)
        return found

    monkeypatch.setattr(CpuSequences, "logits", logits)


def err_in_large_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The LM computes other logits in a pass that has more rows than those of verification."""
    real_forward, real_logits = CpuSequences.forward, CpuSequences.logits
    rows_of: dict[int, int] = {}

    def forward(self: CpuSequences, inputs: list[Any]) -> None:
        rows_of[id(self)] = sum(len(one.tokens) for one in inputs)
        real_forward(self, inputs)

    def logits(self: CpuSequences, rows: Any) -> np.ndarray:
        found = real_logits(self, rows)
        if rows_of.get(id(self), 0) > groups.capacity_to_verify(ON_CPU).rows:
            found[-1] = np.roll(found[-1], 7)
        return found

    monkeypatch.setattr(CpuSequences, "forward", forward)
    monkeypatch.setattr(CpuSequences, "logits", logits)


FAULTS = {
    "coder": code_otherwise,
    "tilt": tilt_otherwise,
    "correction": broken(flip_a_correction),
    "end of the corrections": broken(cut_a_correction),
    "memory": broken(flip_a_memory),
    "one pass": err_in_one_pass,
    "large passes": err_in_large_passes,
}


@pytest.mark.parametrize("verify", VERIFY)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_noticed(tiny: Codec, monkeypatch: pytest.MonkeyPatch, fault: str, verify: Verify) -> None:
    store_nothing(monkeypatch)
    arguments: dict[str, Any] = {"site": Readout(0.3, 64), "context": "max"}
    right = tiny.encode(LINES, verify=False, **arguments)
    FAULTS[fault](monkeypatch)
    with pytest.raises(MachineError, match=r"so it was discarded.*report it"):
        tiny.encode(LINES, verify=verify, **arguments)
    monkeypatch.undo()
    store_nothing(monkeypatch)
    FAULTS[fault](monkeypatch)
    assert tiny.encode(LINES, verify=False, **arguments) != right  # the fault is one of the encoder


@pytest.mark.parametrize("verify", VERIFY)
def test_a_wrong_reference_is_noticed(tiny: Codec, monkeypatch: pytest.MonkeyPatch, verify: Verify) -> None:
    def refer_elsewhere(made: Container) -> Container:
        (reference,) = made.references
        return replace(made, references=(replace(reference, start=reference.start + 1),))

    store_nothing(monkeypatch, references=True)
    monkeypatch.setattr(repeats, "TOKEN_BYTES", 0)  # so that short repeats that the LM sees are references
    data = f"{TEXT}Something else.\n{TEXT}".encode()
    blob = tiny.encode(data, site=QUICK, verify=verify)
    assert len(container.unpack(blob).references) == 1 and tiny.decode(blob) == data
    broken(refer_elsewhere)(monkeypatch)
    with pytest.raises(MachineError, match=r"so it was discarded.*report it"):
        tiny.encode(data, site=QUICK, verify=verify)


def test_nothing_is_written(monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path, llama_folder: Path) -> None:
    store_nothing(monkeypatch)
    broken(flip_a_correction)(monkeypatch)
    (tmp_path / "text").write_bytes(LINES)
    for verify in VERIFY:
        result = run("compress", "text", "--model", llama_folder, "--verify", verify)
        assert result.exit_code == 1 and "so it was discarded" in result.stderr and "Traceback" not in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert run("compress", "text", "--model", llama_folder, "--no-verify").exit_code == 0
    assert (tmp_path / "text.memz").exists()


def test_passes_notice_other_tokens_and_other_chunks(tiny: Codec) -> None:
    tokens = tiny.tokenizer.encode(TEXT)[:60]
    site, coded = encoded(tiny, [[tokens[:30], tokens[30:]]], 1000)
    other = tokens.copy()
    other[45] = (other[45] + 1) % tiny.lm.vocabulary
    for known, message in (
        ([[tokens[:30], other[30:]]], "other tokens"),
        ([[tokens]], "other chunks"),
        ([[tokens[:31], tokens[31:]]], "other chunks"),
        ([], "other chunks"),
    ):
        with pytest.raises(MachineError, match=f"{message}.*so it was discarded"):
            list(verify_all(tiny.lm, site, coded, known, 1000, SILENT))


def test_passes_do_not_step_and_steps_do(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = CpuSequences.step

    def counting(self: CpuSequences, tokens: np.ndarray) -> None:
        steps.append(len(tokens))
        real(self, tokens)

    monkeypatch.setattr(CpuSequences, "step", counting)
    tiny.encode(LINES, site=QUICK)
    assert not steps
    tiny.encode(LINES, site=QUICK, verify="steps")
    assert steps


# ---- archives, and settings


@pytest.mark.parametrize("verify", VERIFY)
def test_archives_are_verified(tiny: Codec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verify: Verify) -> None:
    documents = [LINES[:400], b"", b"\xff\xfe", LINES[100:900], LINES]
    made = Archive.create(tmp_path / "a", documents, codec=primed(tiny), memory_share=0.2, verify=verify)
    made.append(documents, verify=verify)
    assert list(made) == documents * 2
    code_otherwise(monkeypatch)
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(MachineError, match=r"decode.*, so it was discarded,.* report it$"):
        made.append(documents, verify=verify)
    with pytest.raises(MachineError, match=r"decode.*, so it was discarded,.* report it$"):
        Archive.create(tmp_path / "b", documents, codec=tiny, verify=verify)
    assert (tmp_path / "a").read_bytes() == before and not (tmp_path / "b").exists()


def test_ways_that_do_not_exist(tiny: Codec, tmp_path: Path) -> None:
    wrong: Any = "step"
    works: list[Callable[[], Any]] = [
        lambda: tiny.encode(LINES, verify=wrong),
        lambda: Archive.create(tmp_path / "a", [LINES], codec=tiny, verify=wrong),
    ]
    for work in works:
        with pytest.raises(EncodeError, match="verify 'step': give True, False, passes or steps"):
            work()
