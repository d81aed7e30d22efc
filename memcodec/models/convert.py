"""The conversion of float weights to the integers of the exact LM (spec/FORMAT.md, "Conversion").

Gains and shifts of norms become a part of the layers that read the norms; what writes to the residual stream loses its
mean if the norms are LayerNorm, which makes them RMSNorm (SliceGPT, arXiv 2401.15024); everything is rotated (see
`lm.rotation`). Each operation is a single IEEE operation on float64, so the integers are the same on every machine.
"""

from collections.abc import Callable

import numpy as np

from memcodec.errors import ModelNotFoundError
from memcodec.lm import arithmetic
from memcodec.lm.architecture import Architecture
from memcodec.lm.rotation import centre, hadamard, products_with, rotate
from memcodec.lm.weights import ExactWeights, Tensors, spread
from memcodec.models.checkpoint import Checkpoint
from memcodec.models.layers import NAMES, Layer, Linear, NamedTensors, Norm, gpt2_layer, llama_layer, norm_of
from memcodec.models.precision import FloatPass
from memcodec.models.tokenizer import PREFIX
from memcodec.progress import ByteProgress


def convert(
    architecture: Architecture,
    family: str,
    source: Checkpoint,
    name: str,
    prefix: tuple[int, ...],
    tokenizer: bytes,
    progress: ByteProgress | None = None,
    float_pass: FloatPass | None = None,
) -> ExactWeights:
    """Convert the float weights of an LM.

    family: see `architecture.FAMILIES`; name: for messages; prefix: token ids; tokenizer: its hash; float_pass: it
    passes through the layers as they are read. Raises ModelNotFoundError.
    """
    a = architecture
    if not prefix or max(prefix) >= a.vocabulary:
        raise ModelNotFoundError(f"{name}: the tokens of {PREFIX!r} are missing in its tokenizer or its vocabulary")
    checkpoint = NamedTensors(source, name)
    layer_of = gpt2_layer if family == "gpt2" else llama_layer
    names = NAMES[family]
    position = checkpoint.read(names.position, (None, a.hidden))[: a.positions] if names.position else None
    if position is not None and len(position) < a.positions:
        raise ModelNotFoundError(f"{name}: {names.position} has fewer rows than config.json has positions")
    if float_pass is not None:
        float_pass.start(checkpoint.read(names.embedding, (a.vocabulary, a.hidden)), position)
    stacked: dict[str, list[np.ndarray]] = {}
    for number in range(a.layers):
        if progress is not None:
            progress("converting the weights", number, a.layers + 4)
        layer = layer_of(a, checkpoint, number)
        if float_pass is not None:
            float_pass.layer(layer)
        for key, values in _rotated(a, layer).items():
            stacked.setdefault(key, []).append(values)
    tensors: Tensors = {key: np.stack(stacked.pop(key)) for key in list(stacked)}
    embedding = checkpoint.read(names.embedding, (a.vocabulary, a.hidden))
    if progress is not None:
        progress("converting the weights", a.layers, a.layers + 4)
    tensors |= _stored_in_blocks("embedding", embedding, lambda rows: Linear(_written(a, rows)))
    if progress is not None:
        progress("converting the weights", a.layers + 2, a.layers + 4)
    head = embedding if a.tied else checkpoint.read(names.head, (a.vocabulary, a.hidden))
    norm = norm_of(a, checkpoint, names.norm)
    if float_pass is not None:
        float_pass.finish(head, norm)
    tensors |= _stored_in_blocks("head", head, lambda rows: _read(Linear(rows), norm), norm.mean)
    if position is not None:
        tensors["position"] = _written(a, position).astype(np.float32)
    tensors["spread"] = np.array([spread(tensors["head"], tensors["head.scale"])])
    if a.rotary is not None:
        tensors["cosine"], tensors["sine"] = arithmetic.rotation(a)
    return ExactWeights(a, {key: np.ascontiguousarray(value) for key, value in tensors.items()}, prefix, tokenizer)


# ---- what reads and writes the residual stream, rotated (spec/FORMAT.md, "Conversion", in the same order)


def _rotated(a: Architecture, layer: Layer) -> Tensors:
    """The exact tensors of a layer."""
    size, first = a.head_size, (a.heads + a.key_heads) * a.head_size
    qkv = _read(layer.qkv, layer.attention_norm)
    values = rotate(qkv.matrix[first:].reshape(a.key_heads, size, -1).swapaxes(1, 2).reshape(-1, size))
    qkv.matrix[first:] = values.reshape(a.key_heads, -1, size).swapaxes(1, 2).reshape(-1, a.hidden)
    if qkv.bias is not None:
        qkv.bias[first:] = rotate(qkv.bias[first:].reshape(-1, size)).reshape(-1)
    mix = rotate(layer.mix.matrix.reshape(-1, size)).reshape(a.hidden, -1)
    block = arithmetic.block_of(a.inner, arithmetic.MOST_ROTATED)
    down = hadamard(layer.down.matrix, block) / block
    result: Tensors = {name: gain.astype(np.float32) for name, gain in layer.heads.items()}
    return (
        result
        | _stored("qkv", qkv, layer.attention_norm.mean)
        | _stored("mix", _writing(a, Linear(mix, layer.mix.bias)))
        | _stored("up", _read(layer.up, layer.mlp_norm), layer.mlp_norm.mean)
        | _stored("down", _writing(a, Linear(down, layer.down.bias)))
    )


def _read(linear: Linear, norm: Norm) -> Linear:
    """A layer that reads the residual stream through a norm, with the norm in it, and rotated."""
    bias = None if linear.bias is None else linear.bias.astype(np.float64)
    if norm.shift is not None:
        shifted = products_with(linear.matrix, norm.shift.astype(np.float64))
        bias = shifted if bias is None else bias + shifted
    return Linear(rotate(linear.matrix.astype(np.float64) * norm.gain.astype(np.float64)), bias)


def _written(a: Architecture, rows: np.ndarray) -> np.ndarray:
    """Vectors that are added to the residual stream, rotated, and without their mean if the norms are LayerNorm."""
    return rotate(centre(rows) if a.layer_norm else rows)


def _writing(a: Architecture, linear: Linear) -> Linear:
    """A layer whose outputs are added to the residual stream, rotated."""
    bias = None if linear.bias is None else _written(a, linear.bias[None])[0]
    return Linear(_written(a, linear.matrix.T).T, bias)


def _stored(name: str, linear: Linear, mean: np.ndarray | None = None) -> Tensors:
    """A layer as exact tensors.

    mean: of its inputs, rotated, float64 [inner]. The bias corrects the error that rounding the matrix makes at this
    mean, which has half of the energy of a norm's outputs in an LM (Nagel et al., "Data-Free Quantization through
    Weight Equalization and Bias Correction", arXiv 1906.04721).
    """
    integers, scale = to_rows(linear.matrix)
    result: Tensors = {name: integers, name + ".scale": scale}
    bias = linear.bias
    if mean is not None:
        lost = products_with(linear.matrix - integers * scale.astype(np.float64)[:, None], mean)
        bias = lost if bias is None else bias + lost
    if bias is not None:
        result[name + ".bias"] = bias.astype(np.float32)
    return result


def _stored_in_blocks(
    name: str, matrix: np.ndarray, change: Callable[[np.ndarray], Linear], mean: np.ndarray | None = None
) -> Tensors:
    """The rows of a large matrix, changed and then stored, a few at a time: float64 takes much memory."""
    blocks = [_stored(name, change(matrix[start : start + _BLOCK]), mean) for start in range(0, len(matrix), _BLOCK)]
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


_BLOCK = 4096  # rows


def to_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [rows, inner] as int8 with a scale for each row, float32: round(w * (127 / max|w|)), and max|w| / 127."""
    most = np.maximum(np.abs(matrix).max(axis=1), arithmetic.TINY)
    return (
        np.rint(matrix * (arithmetic.LARGEST / most)[:, None]).astype(np.int8),
        (most / arithmetic.LARGEST).astype(np.float32),
    )
