"""Compile what a pass launches on a GPU, without one: the PTX and machine code of each kernel, for an H100.

Prints a line for each kernel in JSON. Run by tests/test_exact_gpu.py in a process of its own, where Triton does not
interpret.
"""

import json
import re
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from memcodec.coding import gpu as gpu_coding
from memcodec.coding.corrections import EncodedGroup
from memcodec.coding.distribution import Predictions
from memcodec.coding.steering import Steering
from memcodec.lm import gpu, gpu_sizes, selftest
from memcodec.lm.sequences import SequenceInput
from memcodec.lm.team import team_of
from memcodec.lm.weights import Head
from memcodec.memory import search_gpu

TYPES = {
    torch.float32: "*fp32", torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64", torch.int16: "*i16",
    torch.uint8: "*u8",
}  # fmt: skip
FLOATS = re.compile(r"\b(?:add|sub|mul|div|sqrt|fma|mad|rcp|ex2|lg2|tanh|cvt)\.\S*f(?:32|64)\S*")
# Instructions that are not one IEEE operation: fused, approximate, flushing, or open to contraction by the assembler.
WRONG = re.compile(r"(?:fma|mad|rcp|ex2|lg2|tanh)\.|\S*\.(?:ftz|approx|full)|(?:add|sub|mul)\.f(?:32|64)")
MATRIX = re.compile(r"\b(?:wgmma\.mma_async|mma)\.sync\S*")


def main() -> None:
    """Record what passes and steps launch, without running it, then compile each kernel once."""
    launched: dict[str, tuple[Any, dict[str, str], dict[str, Any], tuple[int, int | None]]] = {}

    def record(
        kernel: Any,
        grid: Any,
        *arguments: Any,
        warps: int = 4,
        stages: int = 3,
        registers: int | None = None,
        **constants: Any,
    ) -> None:
        types = [TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32" for value in arguments]
        signature = dict(zip(kernel.arg_names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
        launched.setdefault(
            f"{kernel.__name__} {signature} {constants}", (kernel, signature, constants, (warps, stages, registers))
        )

    gpu.launch = record
    gpu_coding.launch = record
    search_gpu.launch = record
    gpu.check_numbers = lambda scales: None  # nothing was computed: memory that holds anything
    for name in selftest.KNOWN_ANSWERS:
        sequences = gpu.GpuLM(selftest.tiny(name), "cpu", gpu_sizes.ON_GPU).sequences(1, 75, 75)
        sequences.forward([SequenceInput(0, selftest.TOKENS[:74])])
        sequences.step(selftest.TOKENS[74:])
        lm = sequences.lm
        coder, steering = gpu_coding.Coder(lm), Steering.of(Head(np.ones((71, 8), "i1"), np.ones(71, "f4"), 1.0))
        logits = sequences.placed_logits(slice(1))
        gpu_coding.predictions(np.zeros(1, dtype=np.int64), logits, coder)()
        decoder = gpu_coding.GpuDecoder([EncodedGroup((1,), (b"",), b"")], steering, 300, coder)
        decoder.step(0, logits)
        sequences.restart()
        decoder.steps(sequences, np.zeros((1, 3), dtype=np.int64), 1, 3, np.array([3]), lambda count: None)
        chunk = Predictions(*(np.ones_like(array) for array in Predictions.empty(np.zeros(20, dtype=np.int64), 71)))
        chunk.entropy[:] = 6000
        for effort in (64, 4096):
            search_gpu.GpuSearch(coder, search_gpu.ON_GPU)([chunk], steering, 300, effort, team_of(1))
    for kernel, signature, constants, (warps, stages, registers) in launched.values():
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        options = {
            "num_warps": warps,
            "num_stages": stages,
            "maxnreg": registers,
            "enable_fp_fusion": False,
            "enable_reflect_ftz": False,
        }
        made = triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32), options=options)
        floats = set(FLOATS.findall(made.asm["ptx"]))
        wrong = sorted(one for one in floats if WRONG.match(one))
        matrix = sorted(set(MATRIX.findall(made.asm["ptx"])))
        about = {"kernel": kernel.__name__, "wrong": wrong, "rounded": sorted(floats - set(wrong)), "matrix": matrix}
        print(json.dumps(about), flush=True)


if __name__ == "__main__":
    main()
