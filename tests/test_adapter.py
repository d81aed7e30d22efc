"""Adapters: what one adds is the same everywhere, in both forms of the LM and in the second decoder, or is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from memcodec import Codec, ModelNotFoundError
from memcodec.lm.rotation import rotate
from memcodec.models import registry
from memcodec.models.adapter import FILE_NAME, Adapter, merged
from memcodec.models.checkpoint import open_checkpoint
from spec import decoder

from .conftest import TEXT

Tensors = dict[str, np.ndarray]
QUERY = "model.layers.0.self_attn.q_proj.weight"
KEY = "model.layers.0.self_attn.k_proj.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
NORM = "model.norm.weight"
FIRST_NORM = "model.layers.0.input_layernorm.weight"


def tensors_for(folder: Path) -> tuple[Tensors, dict[str, str]]:
    """Additions to a tiny Llama: int8 factors, one of them of two matrices; float32 factors; the gain of a norm."""
    checkpoint = open_checkpoint(folder)
    random = np.random.default_rng(3)
    rows = {name: checkpoint.read(name).shape for name in (QUERY, KEY, GATE, NORM)}

    def integers(*shape: int) -> np.ndarray:
        return random.integers(-127, 128, shape).astype(np.int8)

    return {
        f"{QUERY}.a": integers(3, rows[QUERY][1]),
        f"{QUERY}.b": integers(rows[QUERY][0], 3),
        f"{QUERY}.scale": np.array([1e-5, 2e-5, 3e-6], dtype=np.float32),
        f"{KEY}.b": integers(rows[KEY][0], 3),
        f"{KEY}.scale": np.array([2e-5, 1e-5, 5e-6], dtype=np.float32),
        f"{GATE}.a": random.normal(size=(2, rows[GATE][1])).astype(np.float32),
        f"{GATE}.b": random.normal(size=(rows[GATE][0], 2)).astype(np.float32),
        f"{GATE}.scale": np.array([0.05, 0.02], dtype=np.float32),
        f"{NORM}.add": random.normal(size=rows[NORM]).astype(np.float32) / 8,
        f"{NORM}.mean": random.normal(size=rows[NORM]).astype(np.float32),
        f"{FIRST_NORM}.mean": random.normal(size=rows[NORM]).astype(np.float32),
    }, {KEY: QUERY}


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A tiny Llama with an adapter."""
    place = tmp_path / "adapted"
    shutil.copytree(llama_folder, place)
    write(place, *tensors_for(llama_folder))
    return place


def write(folder: Path, tensors: Tensors, shared: dict[str, str]) -> None:
    """Write the adapter of a model folder."""
    save_file(tensors, folder / FILE_NAME, {"shared": json.dumps(shared)})


def test_each_step_of_a_merge_is_rounded_by_itself() -> None:
    random = np.random.default_rng(1)
    w = random.normal(size=(300, 7)).astype(np.float32)
    a, b = random.integers(-127, 128, (4, 7)).astype(np.int8), random.integers(-127, 128, (300, 4)).astype(np.int8)
    scale = random.normal(size=4).astype(np.float32)
    expected = w.copy()
    for row in range(300):
        for column in range(7):
            value = w[row, column]
            for r in range(4):
                value = np.float32(value + np.float32(np.float32(int(b[row, r]) * int(a[r, column])) * scale[r]))
            expected[row, column] = value
    assert np.array_equal(merged(w, a, b, scale), expected)


def test_means_correct_what_rounding_does_to_the_mean_of_the_inputs(folder: Path) -> None:
    codec = Codec.load(str(folder), device="cpu")
    weights = registry.load_exact(codec.model.folder, None)[0].plain()
    checkpoint, t = open_checkpoint(folder), weights.tensors
    gain = checkpoint.read(FIRST_NORM).astype(np.float64)
    keys = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qk"]
    rows = np.concatenate([checkpoint.read(name) for name in keys]).astype(np.float64) * gain
    mean = checkpoint.mean(FIRST_NORM, len(gain))
    assert mean is not None
    stored = t["qkv"][0][: len(rows)] * t["qkv.scale"][0][: len(rows), None].astype(np.float64)
    right, found = rows @ mean, stored @ rotate(mean[None])[0]
    assert np.abs(right - found).max() > 1e-5
    assert np.allclose(found + t["qkv.bias"][0][: len(rows)], right, atol=1e-6)
    assert not t["qkv.bias"][1].any()  # of a norm without a mean


def test_the_adapter_changes_the_tensors_that_it_names(folder: Path, llama_folder: Path) -> None:
    adapted, plain = open_checkpoint(folder), open_checkpoint(llama_folder)
    changed = {name for name in plain.names() if not np.array_equal(adapted.read(name), plain.read(name))}
    assert adapted.names() == plain.names()
    assert changed == {QUERY, KEY, GATE, NORM} == Adapter(folder / FILE_NAME).names()


def test_exact_lm_float_lm_and_second_decoder_have_the_same_adapter(folder: Path, llama_folder: Path) -> None:
    codec, plain = Codec.load(str(folder), device="cpu"), Codec.load(str(llama_folder), device="cpu")
    assert codec.lm.identity != plain.lm.identity
    weights = decoder.Weights(folder)
    assert weights.identity() == codec.lm.identity
    blob = codec.encode(TEXT[:600])
    assert codec.decode(blob) == TEXT[:600].encode() == decoder.decode(blob, weights)
    tokens = codec.model.tokenizer.encode(TEXT)[:60]
    with torch.no_grad():
        floats = codec.model.floats
        logits = floats.logits(floats.hidden(torch.from_numpy(tokens)[None]))[0]
        costs = torch.nn.functional.cross_entropy(logits, torch.from_numpy(tokens), reduction="none") / np.log(2)
    assert np.abs(codec.token_bits(tokens) - costs.numpy()).max() < 0.2
    assert np.abs(plain.token_bits(tokens) - costs.numpy()).max() > 0.5


def test_a_changed_adapter_is_noticed(folder: Path) -> None:
    before = Codec.load(str(folder), device="cpu").model.identity
    tensors, shared = tensors_for(folder)
    tensors[f"{NORM}.add"] *= 2
    write(folder, tensors, shared)
    assert Codec.load(str(folder), device="cpu").model.identity != before
    (folder / FILE_NAME).unlink()
    assert Codec.load(str(folder), device="cpu").model.identity != before


def drop(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(name)


def put(name: str, values: np.ndarray) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: values})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop(f"{QUERY}.a"), "is missing"),
        (drop(f"{KEY}.scale"), "is missing"),
        (put(f"{QUERY}.a", np.zeros((3, 5), dtype=np.int8)), r"is int8 \[3, 5\], and should be int8"),
        (put(f"{GATE}.b", np.zeros((9, 2), dtype=np.float32)), r"is float32 \[9, 2\], and should be"),
        (put(f"{GATE}.b", np.zeros((9, 0), dtype=np.float32)), "has the rank 0"),
        (put(f"{NORM}.add", np.full(64, np.nan, dtype=np.float32)), "not finite"),
        (put("model.norm.weight", np.zeros(64, dtype=np.float32)), "do not belong to an adapter"),
        (put("model.other.weight.add", np.zeros(64, dtype=np.float32)), "changes model.other.weight"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    folder: Path, llama_folder: Path, change: Callable[[Tensors], Any], message: str
) -> None:
    tensors, shared = tensors_for(llama_folder)
    change(tensors)
    write(folder, tensors, shared)
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        Codec.load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_adapter_is_refused(folder: Path) -> None:
    for content in (b"", b"\xff" * 30, b"\x08\0\0\0\0\0\0\0{}      "[:12]):
        (folder / FILE_NAME).write_bytes(content)
        with pytest.raises(ModelNotFoundError, match="cannot be read as an adapter"):
            Codec.load(str(folder), device="cpu")
