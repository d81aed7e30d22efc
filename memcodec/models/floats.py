"""The frozen LM in floating point, for fits by gradient descent and for memory embeddings outside of files.

It computes hidden states of any Hugging Face causal LM: of known tokens in one pass, or in cached steps. No file
depends on its results.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from memcodec.errors import ModelNotFoundError, first_line, needs_torch
from memcodec.models import adapter
from memcodec.models.adapter import Adapter
from memcodec.models.checkpoint import Checkpoint, open_checkpoint
from memcodec.models.placeholders import check_content

try:
    import torch
    import transformers
    from torch.utils.checkpoint import checkpoint
except ImportError as error:
    raise needs_torch(error) from error

Step = Callable[[torch.Tensor | None], torch.Tensor]


class FrozenLM:
    """A Hugging Face causal LM in float32, frozen: a body and a linear head."""

    def __init__(self, model: Any, prefix: list[int]) -> None:
        """prefix: the token ids before every group, at least one; they are never stored."""
        self.model = model.eval().requires_grad_(False)
        head = model.get_output_embeddings()
        if head is None or not isinstance(head, torch.nn.Linear):
            raise ModelNotFoundError("the model has no linear LM head: memcodec needs a causal LM")
        self._body = model.base_model
        self.head: torch.Tensor = head.weight
        self._bias: torch.Tensor | None = head.bias
        self.device = self.head.device
        self.hidden_size: int = self.head.shape[1]
        self.embed = model.get_input_embeddings()
        self.embedding_size: int = self.embed.embedding_dim
        self.prefix = prefix
        positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
        self.max_positions: int | None = positions

    @property
    def vocabulary(self) -> int:
        """Rows of the LM head."""
        return self.head.shape[0]

    @classmethod
    def load(cls, folder: Path, prefix: list[int], device: str = "cpu", attention: str = "sdpa") -> "FrozenLM":
        """Load a model folder in float32. attention: "sdpa" or "eager".

        Only safetensors and GGUF weights are read, and none that the architecture needs may be missing. Raises
        ModelNotFoundError.
        """
        for path in [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.gguf")]:
            check_content(path)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        try:
            with quiet():
                model, missing = (_from_gguf if (folder / "model.gguf").is_file() else _from_folder)(folder, attention)
        except Exception as error:  # transformers raises various types for damaged files and unknown architectures
            raise ModelNotFoundError(f"{folder}: it cannot be loaded as a causal LM ({first_line(error)})") from error
        if missing:
            raise ModelNotFoundError(f"{folder}: its weights lack {missing[0]} ({len(missing)} missing in total)")
        return cls(model.to(device), prefix)

    @cached_property
    def identity(self) -> bytes:
        """SHA-256 over the names, dtypes, shapes and bytes of the model's tensors, in the order of their names."""
        digest = hashlib.sha256()
        seen: set[tuple[int, tuple[int, ...]]] = set()
        for name, tensor in sorted(self.model.state_dict().items()):
            key = (tensor.data_ptr(), tuple(tensor.shape))
            if key in seen and tensor.numel():
                continue  # tied to an earlier tensor
            seen.add(key)
            array = tensor.detach().cpu().contiguous().numpy()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(memoryview(array).cast("B") if array.size else b"")
        return digest.digest()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unsteered logits: float32 [..., hidden] -> [..., vocabulary]."""
        return torch.nn.functional.linear(hidden, self.head, self._bias)

    def logits_of(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Unsteered logits of some tokens only: float32 [n, hidden], int64 [n, k] -> float32 [n, k]."""
        logits = torch.bmm(self.head[tokens], hidden[..., None])[..., 0]
        return logits if self._bias is None else logits + self._bias[tokens]

    def prefix_embeddings(self, rows: int) -> torch.Tensor:
        """The embeddings of the prefix, float32 [rows, n, hidden]."""
        return self.embed(torch.tensor([self.prefix], device=self.device)).expand(rows, -1, -1)

    def hidden(self, tokens: torch.Tensor, prompts: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states that predict each token: int64 [rows, tokens] -> float32 [rows, tokens, hidden].

        prompts: float32 [rows, n, hidden], instead of the prefix. Rows may be padded on the right with any ids, since
        the model is causal.
        """
        if prompts is None:
            prompts = self.prefix_embeddings(len(tokens))
        embeddings = torch.cat([prompts, self.embed(tokens[:, :-1].to(self.device))], dim=1)
        states = self._body(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        return states[:, prompts.shape[1] - 1 :]

    @torch.no_grad()
    def embedding_scale(self) -> float:
        """The root mean square of the entries of the token embeddings, as the LM reads them."""
        ids = torch.arange(self.embed.num_embeddings, device=self.device)
        squares = [self.embed(block).square().mean(dim=1) for block in torch.split(ids, 8192)]
        return float(torch.cat(squares).mean().sqrt())

    @contextmanager
    def checkpointed(self) -> Iterator[None]:
        """Forward and backward passes that keep only the input of each layer and compute the layer twice.

        Layers that are not a `GradientCheckpointingLayer` of transformers are not affected.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers: list[Any] = [one for one in self.model.modules() if isinstance(one, GradientCheckpointingLayer)]
        for layer in layers:  # transformers' own switch works in training mode only, which enables dropout
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # which reveals the method of the class

    def start(self, rows: int, tokens: int, prompts: torch.Tensor | None = None) -> Step:
        """Begin cached decoding of up to `tokens` tokens in `rows` rows.

        The returned function takes the tokens just written, int64 [live] (None at first), and returns the hidden states
        that predict the next ones, float32 [live, hidden]. `live` never grows: the last rows end first.
        """
        from transformers import DynamicCache

        if prompts is None:
            prompts = self.prefix_embeddings(rows)
        cache = DynamicCache()
        live = rows

        def step(written: torch.Tensor | None) -> torch.Tensor:
            nonlocal live
            if written is None:
                inputs = prompts
            else:
                if len(written) < live:
                    live = len(written)
                    cache.batch_select_indices(torch.arange(live, device=self.device))
                inputs = self.embed(written.to(self.device))[:, None]
            output = self._body(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            return output.last_hidden_state[:, -1]

        return step


def _from_folder(folder: Path, attention: str) -> tuple[Any, list[str]]:
    """A model, and the names of missing tensors, which transformers initializes at random."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, local_files_only=True, trust_remote_code=False,
        use_safetensors=True, output_loading_info=True,
    )  # fmt: skip
    model, report = loaded
    if (folder / adapter.FILE_NAME).is_file():
        _adapt(model, open_checkpoint(folder), Adapter(folder / adapter.FILE_NAME).names())
    return model, sorted(report["missing_keys"])


def _adapt(model: Any, checkpoint: Checkpoint, names: set[str]) -> None:
    """Replace the tensors of some names by those of a checkpoint with an adapter."""
    state = model.state_dict()
    for name in sorted(names):
        full = name if name in state else f"{model.base_model_prefix}.{name}"
        state[full].copy_(torch.from_numpy(checkpoint.read(name)))


def _from_gguf(folder: Path, attention: str) -> tuple[Any, list[str]]:
    """The same for a built-in model, from its dequantized GGUF file."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    config: Any = AutoConfig.for_model(**json.loads((folder / "config.json").read_text()))
    model: Any = kind.from_config(config, attn_implementation=attention, dtype=torch.float32)
    source = open_checkpoint(folder)
    state = {name: torch.from_numpy(source.read(name)) for name in source.names()}
    missing, _ = model.load_state_dict(state, strict=False)
    model.tie_weights()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return model, sorted(set(missing) - tied)


def auto_tokenizer() -> Any:
    """The class of transformers that loads tokenizers of all kinds."""
    return transformers.AutoTokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars, advice and warnings of transformers, which draws bars even without a terminal."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
