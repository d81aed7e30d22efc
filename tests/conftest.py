"""Tiny LMs for most tests, made here; the built-in model for a few."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import tracemalloc
from pathlib import Path

from memcodec.cache import cache_folder

# The tests have a cache of their own; it shares only files that take long to make. Set before anything is compiled.
_REAL = cache_folder()
_OURS = Path(tempfile.mkdtemp(prefix="memcodec-tests-"))
for _name in ("models", "kernels", "corpora"):
    (_REAL / _name).mkdir(parents=True, exist_ok=True)
    (_OURS / _name).symlink_to(_REAL / _name)
os.environ["MEMCODEC_CACHE"] = str(_OURS)
atexit.register(shutil.rmtree, _OURS, ignore_errors=True)

from memcodec.lm.model import has_cuda_driver  # noqa: E402

if not has_cuda_driver():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs are interpreted; set before anything imports Triton

from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from click.testing import CliRunner, Result  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from memcodec.codec import Codec  # noqa: E402
from memcodec.models.loaded import LoadedModel  # noqa: E402
from memcodec_cli import main  # noqa: E402

hypothesis.settings.register_profile("memcodec", deadline=None)  # the first call of a kernel compiles it
hypothesis.settings.load_profile("memcodec")

# What not every system has.
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
needs_names_of_bytes = pytest.mark.skipif(sys.platform == "darwin", reason="needs names of files that are not UTF-8")

TEXT = """The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore, and the shells she sells
are sea shells for sure. How much wood would a woodchuck chuck if a woodchuck could chuck wood? Él pingüino corrió
rápido; 春眠不觉晓，处处闻啼鸟. Быстрая лисица прыгает через ленивую собаку. 1234567890 == {"key": [1, 2, 3]}
"""

_SIZES: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip

# A model of each family; each option of an architecture is in at least one of them.
TINY: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=True)),
    "llama3": lambda: LlamaForCausalLM(
        LlamaConfig(
            **_SIZES, rope_parameters=_LLAMA3, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
            head_dim=32,
        )
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=900)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=False)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=24)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=256)),
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the built-in model is marked, so that `-m` can leave it out."""
    for item in items:
        if "default_codec" in getattr(item, "fixturenames", ()):
            item.add_marker("default_model")
            item.add_marker("slow")


def save_tokenizer(folder: Path, vocabulary: int = 400) -> None:
    """A byte-level BPE tokenizer trained on a few lines, with one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>").save_pretrained(folder)


def train(model: torch.nn.Module, folder: Path, steps: int = 40) -> None:
    """Train a tiny model on the lines above: a random one loses to zstd everywhere."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = torch.tensor(tokenizer.encode(TEXT * 3, add_special_tokens=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(0, len(ids) // 3, (8,))
        batch = torch.stack([ids[start : start + 96] for start in starts])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a kind in TINY, trained on a few lines, and made on first use."""
    made: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("models") / f"tiny-{kind}"
            folder.mkdir()
            save_tokenizer(folder)
            torch.manual_seed(list(TINY).index(kind))
            train(TINY[kind](), folder)
            made[kind] = folder
        return made[kind]

    return folder_of


@pytest.fixture(scope="session")
def llama_folder(tiny_folders: Callable[[str], Path]) -> Path:
    """The folder of a Llama with two layers, trained on a few lines."""
    return tiny_folders("llama")


@pytest.fixture(scope="session")
def gpt2_folder(tiny_folders: Callable[[str], Path]) -> Path:
    """The folder of a GPT-2 with two layers and learned positions, trained on a few lines."""
    return tiny_folders("gpt2")


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *args, stdin=None: runner.invoke(main, [str(a) for a in args], input=stdin, catch_exceptions=False)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What models are loaded with from now on: one entry for each time."""
    found: list[object] = []
    load = LoadedModel.load

    def noted(*args: object, **options: object) -> LoadedModel:
        found.append(args)
        return load(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LoadedModel, "load", noted)
    return found


def listen() -> None:
    """For `preexec_fn`: enable Ctrl-C, which a process ignores if its parent is a background job of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Within this context, a function returns the most bytes that Python's objects took since it began."""
    tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def store_nothing(patch: pytest.MonkeyPatch, references: bool = False) -> None:
    """All text is encoded with the LM, even if zstd would be smaller, or it occurred before.

    references: repeats still become references, also those that the LM sees.
    """
    patch.setattr("memcodec.container.assembly.STORE_SMALLER", False)
    if not references:
        patch.setattr("memcodec.document.repeats.LEAST_BYTES", sys.maxsize)
    patch.setattr("memcodec.document.repeats.TOKEN_BYTES", 0)


def random_codec(model: torch.nn.Module, folder: Path) -> Codec:
    """A codec on an untrained model, to which any short text can be fitted."""
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return Codec.load(str(folder), device="cpu")


@pytest.fixture(scope="session")
def random_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="session")
def llama(random_path: Path) -> Codec:
    torch.manual_seed(0)
    config = LlamaConfig(**_SIZES, initializer_range=0.2, tie_word_embeddings=True)
    return random_codec(LlamaForCausalLM(config), random_path)


@pytest.fixture(scope="session")
def tiny(llama_folder: Path) -> Codec:
    """A codec on the tiny Llama."""
    return Codec.load(str(llama_folder), device="cpu")


@pytest.fixture(scope="session")
def default_codec() -> Codec:
    """A codec on the built-in default model, downloaded on first use."""
    return Codec.load(device="cpu")
