"""How much of its work a GPU takes at one time. No result depends on it."""

from typing import NamedTuple

import torch

from memcodec.lm.architecture import Architecture
from memcodec.lm.sequences import ON_CPU, Capacity

_LOGITS_BYTES = 1 << 30  # the most of the logits that exist at one time; at most 1/16 of the free memory
_PASS_ROWS = 1 << 14  # a GPU computes some hundred blocks of products side by side
_FITTED = 1 << 17  # tokens: some chunks for each of its processors; their predictions take 370 MB on the host


class BlockSizes(NamedTuple):
    """The block sizes of the kernels, powers of two. No result depends on them.

    entries: of vectors, at least one row; gate: entries of a row at one time; panel, queries: in attention of a full
    pass, positions of the cache and rows of queries; step_panel, span: in attention of a step, positions in a product
    and between products; rows (at most), columns, depth: of a product.
    """

    entries: int
    gate: int
    panel: int
    queries: int
    step_panel: int
    span: int
    rows: int
    columns: int
    depth: int


ON_GPU = BlockSizes(
    entries=1024, gate=2048, panel=64, queries=64, step_panel=128, span=512, rows=128, columns=64, depth=64
)
# The interpreter takes the same time for a large block as for a small one.
INTERPRETED = BlockSizes(
    entries=1 << 15, gate=1 << 15, panel=128, queries=256, step_panel=256, span=512, rows=256, columns=512, depth=512
)


def block_sizes_of(device: str) -> BlockSizes:
    """The block sizes that suit a device of torch."""
    return INTERPRETED if device == "cpu" else ON_GPU


def capacity_of(a: Architecture, device: torch.device) -> Capacity:
    """How much a GPU computes at one time; in Triton's interpreter, as much as a CPU.

    The caches of a batch take up to half of the free memory. The rest is for passes and logits.
    """
    if device.type != "cuda":
        return ON_CPU
    free, _ = torch.cuda.mem_get_info(device)
    position = a.layers * 2 * a.key_heads * (a.head_size + 4)
    head_rows = max(ON_CPU.head_rows, min(_LOGITS_BYTES, free // 16) // (4 * a.vocabulary))
    positions = max(ON_CPU.positions, free // 2 // position)
    return Capacity(_PASS_ROWS, head_rows, sequences=4096, positions=positions, fitted=_FITTED)


def power_of_two(size: int) -> int:
    """The smallest power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()
