"""A tiny LM for most tests, made here; the built-in model for a few."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from memcodec.codec import Codec

TEXT = """The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore, and the shells she sells
are sea shells for sure. How much wood would a woodchuck chuck if a woodchuck could chuck wood? Él pingüino corrió
rápido; 春眠不觉晓，处处闻啼鸟. Быстрая лисица прыгает через ленивую собаку. 1234567890 == {"key": [1, 2, 3]}
"""


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
    """Teach a tiny model the lines above, so that it has something to say: a random one loses to zstd everywhere."""
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
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers, taught a few lines, as a model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    folder.mkdir()
    save_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    train(LlamaForCausalLM(config), folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two layers, with learned position embeddings, taught a few lines, as a model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    folder.mkdir()
    save_tokenizer(folder)
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=256)
    train(GPT2LMHeadModel(config), folder)
    return folder


def random_codec(model: torch.nn.Module, folder: Path) -> Codec:
    """A model that was taught nothing: it can be made to write anything, if little of it."""
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return Codec.load(str(folder), device="cpu")


@pytest.fixture(scope="session")
def random_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="session")
def llama(random_path: Path) -> Codec:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    return random_codec(LlamaForCausalLM(config), random_path)


@pytest.fixture(scope="session")
def tiny(llama_folder: Path) -> Codec:
    """A codec on the tiny Llama."""
    return Codec.load(str(llama_folder), device="cpu")


@pytest.fixture(scope="session")
def default_codec() -> Codec:
    """A codec on the built-in default model, fetched on first use."""
    return Codec.load(device="cpu")
