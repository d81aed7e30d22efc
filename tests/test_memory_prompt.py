"""The prompt site: fitting, packing, files, portability, and memories outside of files."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from memcodec import ChecksumError, EncodeError, FormatError, ModelMismatchError, container, inspect
from memcodec.codec import Codec
from memcodec.embedding import MemoryEmbedding
from memcodec.errors import ModelNotFoundError
from memcodec.groups import decode_batch, encode_groups
from memcodec.memory import fitting as fits
from memcodec.memory import prompt
from memcodec.memory.fitting import Limits, Objective
from memcodec.memory.vectors import unpack, vector_bytes
from memcodec.prediction import predict
from memcodec.progress import Progress
from memcodec.settings import MEMORY_BITS, Prompt
from memcodec_cli import main as cli
from tests.conftest import TEXT, random_codec, store_nothing

SHORT = TEXT[4:60]
FITTING = Prompt(vectors=2, bits=8, steps=300)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return random_codec(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """A model whose embeddings are narrower than the hidden states, and whose layers drop out in training."""
    torch.manual_seed(2)
    config = OPTConfig(
        vocab_size=400, hidden_size=64, word_embed_proj_dim=32, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, dropout=0.5, init_std=0.2, do_layer_norm_before=False,
    )  # fmt: skip
    return random_codec(OPTForCausalLM(config), tmp_path_factory.mktemp("opt"))


@pytest.fixture(scope="module")
def blob(tiny: Codec) -> bytes:
    """A file of several chunks, with corrections, and with different numbers of vectors."""
    with pytest.MonkeyPatch.context() as patch:  # even if zstd would be smaller for so short a text
        store_nothing(patch)
        return tiny.encode(TEXT * 2, site=Prompt(None, 1, 3), chunk_tokens=60)


def chunks_of(model: Codec, text: str, size: int) -> list[np.ndarray]:
    tokens = model.tokenizer.encode(text)
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


# ---- packing


@pytest.mark.parametrize("bits", MEMORY_BITS)
def test_packed_vectors_are_what_the_fit_saw(bits: int) -> None:
    vectors = torch.randn(3, 13, generator=torch.Generator().manual_seed(bits)) * 5
    memory = fits.pack(vectors, bits)
    assert len(memory) == 3 * vector_bytes(13, bits)
    unpacked = unpack(memory, 13, bits)
    assert (unpacked == fits.quantized(vectors, bits).numpy()).all()
    worst = {1: 1.6, 2: 1.2, 3: 0.7, 4: 0.45, 8: 0.05, 16: 0.001}[bits]
    assert np.sqrt(np.mean((unpacked - vectors.numpy()) ** 2)) < worst * 2.5


def test_packing_is_as_specified() -> None:
    scale = np.float16(0.75)
    memory = scale.tobytes() + bytes([0b11_01_00_10, 0b01])  # levels 2, 0, 1, 3 and 1: least significant first
    expected = np.array([[1, -3, -1, 3, -1]], dtype=np.float32) * 0.75
    assert (unpack(memory, 5, 2) == expected).all()
    half = np.array([1.5, -2, 0.1], dtype="<f2")
    assert (unpack(half.tobytes(), 3, 16) == half.astype(np.float32)).all()


@pytest.mark.parametrize("size", [0, 1, 9, 11, 65 * 10])
def test_a_memory_of_another_length_is_refused(size: int) -> None:
    assert len(unpack(bytes(64 * 10), 64, 1)) == 64
    with pytest.raises(FormatError):
        unpack(bytes(size), 64, 1)


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_entries_that_are_no_numbers_are_refused(bits: int, bad: float) -> None:
    memory = np.float16(bad).tobytes() + bytes(vector_bytes(8, bits) - 2)
    with pytest.raises(FormatError, match="not a number"):
        unpack(memory, 8, bits)


@pytest.mark.parametrize("bits", MEMORY_BITS)
def test_zero_and_huge_vectors_pack(bits: int) -> None:
    for value in (0.0, 1e30, -1e30):
        assert np.isfinite(unpack(fits.pack(torch.full((1, 8), value), bits), 8, bits)).all()


# ---- fitting


def test_the_memory_alone_is_changed(llama: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the weights could be changed: check the parameters of the optimizer, and the weights before and after."""
    given: list[list[torch.Size]] = []
    adam = torch.optim.Adam

    def spy(parameters: list[torch.nn.Parameter], *rest: object, **more: object) -> torch.optim.Optimizer:
        given.append([parameter.shape for parameter in parameters])
        return adam(parameters, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim, "Adam", spy)
    lm = llama.floats
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    lm.model.requires_grad_(True)
    try:
        first, last = (fits.fit(lm, chunks_of(llama, SHORT, 8)[:2], replace(FITTING, steps=n)) for n in (1, 30))
    finally:
        lm.model.requires_grad_(False)
        lm.model.zero_grad(set_to_none=True)
    assert given == [[torch.Size([2, 64])] * 2] * 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())
    assert all(a.memory != b.memory and b.losses[-1] < b.losses[0] for a, b in zip(first, last, strict=True))


@pytest.mark.parametrize("bits", MEMORY_BITS)
def test_every_width_fits_and_reconstructs(llama: Codec, bits: int) -> None:
    embedding = llama.fit_memory("over the lazy dog", Prompt(vectors=4, bits=bits, steps=500))
    assert embedding.exact and embedding.reconstruct() == "over the lazy dog"
    assert 1 <= embedding.fit.steps <= 500
    assert len(embedding.fit.losses) == len(embedding.fit.accuracies) == embedding.fit.steps
    assert embedding.fit.accuracies[-1] == 1


def test_learned_positions_fit_and_reconstruct(gpt2: Codec) -> None:
    embedding = gpt2.fit_memory("over the lazy dog", Prompt(vectors=4, steps=500))
    assert embedding.exact and embedding.reconstruct() == "over the lazy dog"


def test_embeddings_of_another_width_fit_and_reconstruct(opt: Codec) -> None:
    embedding = opt.fit_memory("over the lazy dog", Prompt(vectors=8, steps=500))
    assert embedding.vectors.shape == (8, 32)
    assert embedding.exact and embedding.reconstruct() == "over the lazy dog"


@pytest.mark.slow
def test_a_chunk_fits_alike_alone_and_in_a_batch(llama: Codec) -> None:
    """Padding and leaving the batch change nothing: the first row starts from the same memory."""
    chunks = [chunk[: 9 - i] for i, chunk in enumerate(chunks_of(llama, TEXT, 9)[:5])]
    together = fits.fit(llama.floats, chunks, FITTING)
    (alone,) = fits.fit(llama.floats, chunks[:1], FITTING)
    assert alone.steps == together[0].steps
    assert np.allclose(alone.losses, together[0].losses, rtol=0.02, atol=0.01)
    assert len({fit.steps for fit in together}) > 1  # some did leave early


@pytest.mark.slow
def test_several_passes_do_what_one_does(llama: Codec) -> None:
    chunks = chunks_of(llama, TEXT, 7)[:6]
    once = fits.fit(llama.floats, chunks, replace(FITTING, steps=5))
    split = fits.fit(llama.floats, chunks, replace(FITTING, steps=5), limits=Limits(20, 3))
    for a, b in zip(once, split, strict=True):
        assert np.allclose(a.losses, b.losses, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_long_chunks_are_fitted_alike_in_less_memory(name: str, request: pytest.FixtureRequest) -> None:
    model: Codec = request.getfixturevalue(name)
    chunks, settings = chunks_of(model, TEXT, 30)[:2], replace(FITTING, steps=4)
    kept: list[int] = []

    def losses(limits: Limits) -> list[float]:
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            found = fits.fit(model.floats, chunks, settings, objective=Objective(ahead=None), limits=limits)
        return [loss for fit in found for loss in fit.losses]

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    usual = losses(Limits())
    assert np.allclose(losses(Limits(pass_positions=20)), usual, rtol=1e-3)
    assert kept[1] < kept[0] / 2
    assert not any("forward" in vars(module) for module in model.floats.model.modules())


def test_passes_are_bounded_with_vectors_and_padding(llama: Codec) -> None:
    shapes: list[tuple[int, int]] = []

    def spy(module: torch.nn.Module, args: object, inputs: dict[str, torch.Tensor]) -> None:
        shapes.append(tuple(inputs["inputs_embeds"].shape[:2]))

    hook = llama.floats.model.base_model.register_forward_pre_hook(spy, with_kwargs=True)
    chunks = chunks_of(llama, TEXT, 9)[:6]
    try:
        fits.fit(llama.floats, chunks, replace(FITTING, vectors=20, steps=1), limits=Limits(pass_positions=100))
    finally:
        hook.remove()
    assert sum(rows for rows, _ in shapes) == 6 and len(shapes) > 1
    assert all(rows * positions <= 100 for rows, positions in shapes)


@pytest.mark.slow
def test_tokens_can_be_asked_to_win_by_much(llama: Codec) -> None:
    chunk = llama.tokenizer.encode("over the lazy dog")
    easy, sure = (
        fits.fit(llama.floats, [chunk], Prompt(vectors=4, steps=800), objective=Objective(slack=0.0, sure=margin))[0]
        for margin in (0, 3)
    )
    assert easy.exact and sure.exact and sure.steps > easy.steps


def test_a_fit_that_no_longer_moves_ends(llama: Codec) -> None:
    (fit,) = fits.fit(llama.floats, chunks_of(llama, TEXT, 60)[:1], Prompt(bits=1, steps=400, patience=30))
    assert not fit.exact and 30 < fit.steps < 400
    gained = max(range(len(fit.accuracies)), key=lambda i: fit.accuracies[i])
    assert fit.steps - gained >= 30


@pytest.mark.slow
def test_seeds_make_a_fit_repeatable(llama: Codec) -> None:
    first, again, other = (llama.fit_memory(SHORT, Prompt(bits=4, steps=10, seed=seed)).fit for seed in (7, 7, 8))
    assert (first.memory, first.losses) == (again.memory, again.losses)
    assert first.memory != other.memory


def test_the_target_grows_with_the_prefix(llama: Codec) -> None:
    """With `ahead` 1, only the prefix and the next token count."""
    chunks = chunks_of(llama, TEXT, 40)[:1]
    (fit,) = fits.fit(llama.floats, chunks, Prompt(steps=40), objective=Objective(ahead=1))
    assert fit.written == fit.prefix or fit.prefix == 0
    assert 40 * max(fit.accuracies) <= fit.prefix + 1


@pytest.mark.slow
def test_a_growing_target_never_shrinks(llama: Codec) -> None:
    """A memory with more tokens but a shorter prefix must not reduce the target, or the fit makes no progress."""
    seen: list[fits.FitStep] = []
    found = fits.fit(llama.floats, chunks_of(llama, TEXT, 24)[:4], Prompt(bits=4, steps=60), seen.append)
    prefixes = [report.prefix for report in seen]
    assert prefixes == sorted(prefixes) and 0 < prefixes[-1] == sum(fit.prefix for fit in found)
    assert not all(fit.exact for fit in found)


def test_where_all_is_pulled_at_the_memory_that_writes_most_is_kept(llama: Codec) -> None:
    everything = Objective(ahead=None)
    (fit,) = fits.fit(llama.floats, chunks_of(llama, TEXT, 30)[:1], Prompt(steps=40), objective=everything)
    assert not fit.exact and fit.written == round(30 * max(fit.accuracies)) > fit.prefix
    assert everything.prefers((9, 2), (8, 5)) and not Objective(ahead=3).prefers((9, 2), (8, 5))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1.0, 4.0])
def test_the_learning_rate_is_a_choice(llama: Codec, rate: float) -> None:
    usual, other = (llama.fit_memory(SHORT, Prompt(steps=30, learning_rate=x)).fit for x in (16.0, rate))
    assert other.losses[0] == usual.losses[0] and other.losses[-1] != usual.losses[-1]
    assert min(other.losses) < other.losses[0]


def test_auto_takes_the_fewest_vectors(llama: Codec) -> None:
    easy, hard = chunks_of(llama, "The quick", 2)[0], chunks_of(llama, TEXT, 24)[3]
    auto = fits.fit(llama.floats, [easy, hard], Prompt(None, 2, 150))
    counts = [len(unpack(fit.memory, 64, 2)) for fit in auto]
    assert auto[0].exact and counts[0] == 1 < counts[1]
    assert auto[1].steps > 150


def test_auto_near_the_end_of_the_positions_tries_what_there_is_room_for(gpt2: Codec) -> None:
    room = 256 - len(gpt2.floats.prefix)
    (chunk,) = chunks_of(gpt2, TEXT * 5, room - 2)[:1]
    (fit,) = fits.fit(gpt2.floats, [chunk], Prompt(None, 8, 2))
    assert fit.steps == 4  # with one vector and with two
    with pytest.raises(EncodeError, match="positions"):
        fits.fit(gpt2.floats, chunks_of(gpt2, TEXT * 5, room)[:1], Prompt(None, 8, 2))


def test_positions_of_the_exact_lm_bound_a_fit(
    llama: Codec, tiny_folders: Callable[[str], Path], tmp_path: Path
) -> None:
    (chunk,) = chunks_of(llama, TEXT, 20)[:1]
    (fit,) = fits.fit(llama.floats, [chunk], Prompt(None, 8, 1), positions=len(llama.floats.prefix) + 22)
    assert fit.steps == 2  # with one vector and with two
    folder = shutil.copytree(tiny_folders("mistral"), tmp_path / "narrow")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 32}))
    narrow = Codec.load(str(folder), device="cpu")
    longest = 32 - len(narrow.lm.prefix) - 1
    data = narrow.tokenizer.decode(narrow.tokenizer.encode(TEXT)[:longest])
    used = Prompt(None, 16, 1)
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        blob = narrow.encode(data, site=used, chunk_tokens=longest)
    assert narrow.decode(blob) == data and [c.tokens for c in container.unpack(blob).chunks] == [longest]


def test_auto_gives_no_chunk_more_vectors_than_tokens(llama: Codec) -> None:
    long, short = chunks_of(llama, TEXT, 20)[0], chunks_of(llama, TEXT, 3)[0]
    found = fits.fit(llama.floats, [long, short], Prompt(None, 1, 1))
    assert [fit.steps for fit in found] == [5, 2]  # 1, 2, 4, 8, 16 vectors; 1 and 2


def test_reports_on_every_step(llama: Codec) -> None:
    seen: list[fits.FitStep] = []
    embedding = llama.fit_memory(SHORT, Prompt(steps=6), callback=seen.append)
    assert [report.step for report in seen] == list(range(1, embedding.fit.steps + 1))
    assert [report.loss for report in seen] == embedding.fit.losses
    assert {(report.vectors, report.chunks) for report in seen} == {(1, 1)}


@pytest.mark.parametrize(
    "setting",
    [
        {"vectors": 0},
        {"vectors": 65},
        {"bits": 5},
        {"steps": 0},
        {"patience": 0},
        {"learning_rate": 0.0},
        {"learning_rate": 1e4},
        {"learning_rate": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused_when_they_are_made(setting: dict) -> None:
    with pytest.raises(EncodeError, match=": give"):
        Prompt(**setting)


@pytest.mark.parametrize("objective", [Objective(ahead=0), Objective(slack=-1.0), Objective(sure=-1.0)], ids=str)
def test_objectives_out_of_range_are_refused(llama: Codec, objective: Objective) -> None:
    with pytest.raises(EncodeError, match=": give"):
        fits.fit(llama.floats, chunks_of(llama, SHORT, 8)[:1], FITTING, objective=objective)


def test_other_requests_that_cannot_be_met(llama: Codec, gpt2: Codec) -> None:
    with pytest.raises(EncodeError, match="tokens"):
        llama.fit_memory("")
    with pytest.raises(EncodeError, match="positions"):
        gpt2.fit_memory(TEXT * 2)


def test_an_architecture_that_the_exact_lm_lacks_has_memories_and_no_files(opt: Codec) -> None:
    assert opt.fit_memory("over the lazy dog", Prompt(vectors=8, steps=500)).exact
    for call in (lambda: opt.encode(TEXT), lambda: opt.bound(TEXT), lambda: opt.lm):
        with pytest.raises(ModelNotFoundError, match="architecture 'opt' is not supported; memcodec has llama"):
            call()


# ---- files


def test_pure_file_round_trip(llama: Codec) -> None:
    blob = llama.encode(SHORT, site=replace(FITTING, vectors=None, pure=True), chunk_tokens=6)
    assert llama.decode(blob) == SHORT.encode()
    parsed = container.unpack(blob)
    assert parsed.chunks and not any(group.corrections for group in parsed.groups)
    facts = inspect(blob)
    assert facts["settings"] == {"site": "prompt", "bits": 8, "dimensions": 64, "chunk_tokens": 6, "context": 6}
    assert all(span["memory_bytes"] % 66 == 0 and span["correction_bytes"] == 0 for span in facts["spans"])


def test_vectors_that_cannot_pay_are_refused_before_the_fit(llama: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "fit", None)
    with pytest.raises(EncodeError, match="use a pure site"):
        llama.encode(TEXT, site=Prompt(bits=16), chunk_tokens=6)
    assert llama.decode(llama.encode(b"\xff" * 100, site=Prompt())) == b"\xff" * 100  # nothing to fit


def test_progress_moves_while_chunks_are_fitted(llama: Codec) -> None:
    seen: list[Progress] = []
    llama.encode(SHORT, site=replace(FITTING, pure=True), chunk_tokens=6, progress=seen.append)
    fitting = [report for report in seen if report.stage == "fit"]
    done = [report.tokens_done for report in fitting]
    assert done == sorted(done) and done[-1] == fitting[-1].tokens_total
    assert any(0 < report.tokens_done < report.tokens_total and not report.chunks_done for report in fitting)


def test_what_is_not_fitted_is_corrected(tiny: Codec, blob: bytes) -> None:
    parsed = container.unpack(blob)
    assert len(parsed.chunks) > 2 and any(group.corrections for group in parsed.groups)
    assert len({len(chunk.memory) for chunk in parsed.chunks}) > 1
    assert tiny.decode(blob) == (TEXT * 2).encode()


def test_learned_positions_round_trip(gpt2: Codec) -> None:
    blob = gpt2.encode(SHORT, site=replace(FITTING, vectors=4, pure=True), chunk_tokens=4)
    assert gpt2.decode(blob) == SHORT.encode()


def test_pure_names_the_chunks_that_fail(tiny: Codec) -> None:
    with pytest.raises(EncodeError, match=r"(\d) of \1 chunks need corrections \(chunk 0, 1"):
        tiny.encode(TEXT[:200], site=Prompt(bits=1, steps=2, pure=True), chunk_tokens=40)


def test_a_memory_helps_the_chunk_that_it_was_fitted_to(llama: Codec, gpt2: Codec) -> None:
    """Fitted in floating point, decoded exactly: no corrections, or fewer than without the memory."""
    for model in (llama, gpt2):
        runs = chunks_of(model, SHORT, 6)
        site = prompt.PromptSite(8, 64, replace(FITTING, vectors=4), lambda model=model: model.floats)
        groups = [[tokens] for tokens in runs]
        made = list(encode_groups(model.lm, site, groups, 200))
        without = [found.bits() for found in predict(model.lm, groups, 200, [None] * len(runs))]
        assert sum(len(coded.corrections) for coded in made) < 0.1 * sum(without) / 8
        for tokens, written in zip(runs, decode_batch(model.lm, site, made, 200), strict=True):
            assert np.array_equal(tokens, written)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_decodes_with_any_batch(tiny: Codec, blob: bytes, batch: int) -> None:
    assert tiny.decode(blob, batch=batch) == (TEXT * 2).encode()


@pytest.mark.parametrize(("threads", "kernels"), [(1, "numba"), (2, "numba"), (1, "torch")])
def test_decodes_with_any_threads_and_kernels(llama_folder: Path, blob: bytes, threads: int, kernels: str) -> None:
    other = Codec.load(str(llama_folder), device="cpu", threads=threads, kernels=kernels)
    assert other.decode(blob) == (TEXT * 2).encode()


@pytest.mark.parametrize("change", [-1, 1, -10, 64 * 10])
def test_hostile_memory_lengths_are_refused(tiny: Codec, blob: bytes, change: int) -> None:
    parsed = container.unpack(blob)
    first = parsed.segments[0]
    longer = first.chunks[0].memory + bytes(max(change, 0))
    changed = b"" if change == -10 else longer[: len(longer) + min(change, 0)]
    parts = [replace(first, chunks=(replace(first.chunks[0], memory=changed),)), *parsed.parts[1:]]
    with pytest.raises(FormatError, match="vectors"):
        tiny.decode(container.pack(replace(parsed, parts=parts)))


@pytest.mark.parametrize("fields", [(5, 64), (0, 64), (1, 0), (1, 128), (17, 64), (1,), (1, 64, 1), ()])
def test_hostile_settings_are_refused(tiny: Codec, blob: bytes, fields: tuple[int, ...]) -> None:
    parsed = container.unpack(blob)
    assert parsed.settings is not None
    with pytest.raises(FormatError):
        tiny.decode(container.pack(replace(parsed, settings=replace(parsed.settings, fields=fields))))


def test_more_vectors_than_positions_are_refused(gpt2: Codec) -> None:
    chunk = container.Chunk(230, fits.pack(torch.zeros(40, 64), 1), 0)
    used = container.Settings("prompt", (1, 64), 230, 230)
    model = container.ModelId.of(gpt2.name, gpt2.model.identity)
    hostile = container.Container(230, bytes(16), [container.Segment(230, (chunk,), b"")], model, used)
    with pytest.raises(FormatError, match="positions"):
        gpt2.decode(container.pack(hostile))


def test_vectors_in_the_middle_of_a_group_are_refused(tiny: Codec, blob: bytes) -> None:
    parsed = container.unpack(blob)
    first, second = parsed.segments[:2]
    joined = replace(first, size=first.size + second.size, chunks=first.chunks + second.chunks)
    with pytest.raises(FormatError, match="vectors in the middle of a group"):
        tiny.decode(container.pack(replace(parsed, parts=[joined, *parsed.parts[2:]])))


# ---- embeddings


def test_save_and_load(llama: Codec, tmp_path: Path) -> None:
    made = llama.fit_memory("over the lazy dog", Prompt(vectors=4, bits=3, steps=500))
    made.save(tmp_path / "dog.safetensors")
    loaded = MemoryEmbedding.load(tmp_path / "dog.safetensors", llama)
    assert (loaded.vectors == made.vectors).all() and loaded.bits == 3
    assert loaded.reconstruct() == made.reconstruct() == "over the lazy dog"
    assert loaded.fit.steps == made.fit.steps and np.allclose(loaded.fit.losses, made.fit.losses)
    assert (safetensors.numpy.load_file(tmp_path / "dog.safetensors")["vectors"] == made.vectors).all()


def test_save_writes_completely_or_not_at_all(llama: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk left a part in place of the old file."""
    path = tmp_path / "memory.safetensors"
    made = llama.fit_memory(SHORT, Prompt(steps=1))
    made.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        made.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_load_refuses_other_models_and_other_files(llama: Codec, gpt2: Codec, tmp_path: Path) -> None:
    path = tmp_path / "memory.safetensors"
    llama.fit_memory(SHORT, Prompt(steps=1)).save(path)
    with pytest.raises(ModelMismatchError):
        MemoryEmbedding.load(path, gpt2)
    safetensors.numpy.save_file({"vectors": np.zeros((1, 64), np.float32)}, path)
    with pytest.raises(FormatError):
        MemoryEmbedding.load(path, llama)
    for blob in (b"", b"nothing", b"\x02" + bytes(7) + b"{}", bytes([255] * 40)):
        path.write_bytes(blob)
        with pytest.raises(FormatError):
            MemoryEmbedding.load(path, llama)
    with pytest.raises(OSError):
        MemoryEmbedding.load(tmp_path, llama)
    with pytest.raises(OSError):
        llama.fit_memory(SHORT, Prompt(steps=1)).save(tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 0}, {"tokens": 10**9}, {"tokens": 1024}, {"tokens": float("inf")}, {"prefix": -1}, {"steps": -1},
        {"prefix": 10**6}, {"written": 10**30}, {"bits": 5}, {"bits": None}, {"weights": "\n\x1b"}, {"weights": 3},
        {"tokenizer": "00" * 10000},
    ],
    ids=str,
)  # fmt: skip
def test_load_refuses_hostile_headers_in_one_line(llama: Codec, tmp_path: Path, change: dict) -> None:
    path = tmp_path / "memory.safetensors"
    llama.fit_memory(SHORT, Prompt(steps=1)).save(path)
    with safetensors.safe_open(path, "np") as file:
        about = json.loads(file.metadata()["memory"])
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors, path, {"memory": json.dumps(about | change)})
    with pytest.raises((FormatError, ModelMismatchError)) as caught:
        MemoryEmbedding.load(path, llama)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize("bad", [np.zeros((1, 1)), np.zeros(0, np.uint8), np.zeros(7, np.uint8)], ids=str)
def test_load_refuses_hostile_memories(llama: Codec, tmp_path: Path, bad: np.ndarray) -> None:
    path = tmp_path / "memory.safetensors"
    llama.fit_memory(SHORT, Prompt(steps=1)).save(path)
    with safetensors.safe_open(path, "np") as file:
        about = file.metadata()
    safetensors.numpy.save_file(safetensors.numpy.load_file(path) | {"memory": bad}, path, about)
    with pytest.raises(FormatError, match=str(path)):
        MemoryEmbedding.load(path, llama)


def test_a_reconstruction_is_checked(llama: Codec) -> None:
    made = llama.fit_memory("over the lazy dog", Prompt(vectors=4, bits=8, steps=500))
    made.vectors = -made.vectors
    with pytest.raises(ChecksumError):
        made.reconstruct()


# ---- the command


def test_the_command_writes_and_reads_prompt_files(llama: Codec, random_path: Path, tmp_path: Path) -> None:
    document = tmp_path / "dog.txt"
    document.write_text("over the lazy dog")
    options = ["--site", "prompt", "--vectors", "auto", "--bits", "8", "--steps", "300", "--pure", "--quiet"]
    made = CliRunner().invoke(cli, ["compress", str(document), "--model", str(random_path), *options])
    assert made.exit_code == 0, made.output
    packed = tmp_path / "dog.txt.memz"
    assert llama.decode(packed.read_bytes()) == b"over the lazy dog"
    shown = CliRunner().invoke(cli, ["inspect", str(packed)]).output
    (site,) = (line.split() for line in shown.splitlines() if line.startswith("site"))
    assert site == ["site", "prompt"]
    assert container.unpack(packed.read_bytes()).settings.fields == (8, 64) and "bits" in shown


@pytest.mark.parametrize("vectors", ["0", "65", "many"])
def test_the_command_refuses_other_numbers_of_vectors(vectors: str) -> None:
    result = CliRunner().invoke(cli, ["compress", "x", "--site", "prompt", "--vectors", vectors])
    assert result.exit_code == 2 and "1 to 64, or auto" in result.output


@pytest.mark.parametrize(
    ("given", "site"),
    [(["--pure"], "prompt"), (["--bits", "8"], "prompt"), (["--site", "prompt", "--effort", "9"], "readout")],
)
def test_the_command_refuses_options_of_the_other_site(tmp_path: Path, given: list[str], site: str) -> None:
    (tmp_path / "x").write_text("x")
    result = CliRunner().invoke(cli, ["compress", str(tmp_path / "x"), *given])
    assert result.exit_code == 2 and f"is for --site {site} only" in result.output
    assert not (tmp_path / "x.memz").exists()
