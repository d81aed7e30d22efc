"""What a model loses by eight bits: the float pass beside transformers, and models that are refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from memcodec.errors import ModelNotFoundError
from memcodec.lm import architecture, arithmetic
from memcodec.models import checkpoint, convert, precision, registry
from memcodec.models.tokenizer import ByteTokenizer

from .conftest import TINY, Run


@pytest.mark.parametrize("kind", TINY)
def test_the_float_pass_is_that_of_transformers(kind: str, tiny_folders: Callable[[str], Path]) -> None:
    folder = tiny_folders(kind)
    family, described = architecture.read(folder)
    tokenizer = ByteTokenizer(folder)
    float_pass = precision.FloatPass.of(described, tokenizer)
    weights = checkpoint.open_checkpoint(folder)
    exact = convert.convert(
        described, family, weights, kind, tokenizer.prefix(), tokenizer.tokens.digest, None, float_pass
    )
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = lm(torch.from_numpy(float_pass.tokens)[None]).logits[0].numpy()
    assert len(float_pass.tokens) > 100 and expected.std() > 1
    assert np.abs(float_pass.logits - expected).max() < 0.01
    assert exact.identity == registry.load_exact(registry.ModelFolder(kind, folder))[0].identity
    precision.check(exact, float_pass, kind)


def test_tokens_that_the_model_does_not_have_are_left_out(tiny_folders: Callable[[str], Path]) -> None:
    folder = tiny_folders("llama")
    described = replace(architecture.read(folder)[1], vocabulary=150)
    float_pass = precision.FloatPass.of(described, ByteTokenizer(folder))
    assert len(float_pass.tokens) > 20 and float_pass.tokens.max() < 150


def test_lost_bits() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32) * 3
    exact = logits / np.log(2) * arithmetic.UNIT
    assert abs(precision.lost_bits(logits, exact + 77)) < 1e-6
    one, other = np.log(np.array([[0.5, 0.5]])), np.log2(np.array([[0.125, 0.875]])) * arithmetic.UNIT
    assert precision.lost_bits(one, other) == pytest.approx(0.5 * np.log2(4) + 0.5 * np.log2(0.5 / 0.875))
    assert np.isnan(precision.lost_bits(one * np.nan, other))


def test_a_model_that_eight_bits_do_not_hold(tiny_folders: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    """An entry that is huge in all vectors, as a few are in some LMs, takes the precision of all others."""
    folder = tmp_path / "outlier"
    shutil.copytree(tiny_folders("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 5] += 3000
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for _ in range(2):  # what was refused is not kept
        with pytest.raises(ModelNotFoundError, match=r"^outlier: its predictions are .* \d+\.\d\d bits per token"):
            registry.load_exact(registry.ModelFolder("outlier", folder))
    (tmp_path / "text").write_text("A text that is long enough for the LM. " * 20)
    result = run("compress", "--model", folder, tmp_path / "text")
    assert result.exit_code != 0 and result.stderr.count("\n") == 1
    assert "outlier: its predictions are inaccurate with eight bits" in result.stderr
    assert not (tmp_path / "text.memz").exists()
