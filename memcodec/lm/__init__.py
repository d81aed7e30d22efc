"""The frozen LM, evaluated so that every bit of every result is the same on every machine (spec/FORMAT.md).

`architecture` says what is computed, `weights` with which integers, and `arithmetic` by which operations. There are two
implementations with the same bits: `cpu` (its kernels are in `kernels`, `attention`, `quantize` and `product`, its
instructions in `instructions`, `amx` and `tiles`, its data in `layout`, its threads in `team`) and `device` (torch, its
operations are in `operations`). Each must pass `selftest`. `model` is the LM that the codec uses.
"""
