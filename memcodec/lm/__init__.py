"""The frozen LM, evaluated so that every bit of every result is the same on every machine (spec/FORMAT.md).

`architecture` says what is computed, `weights` with which integers, and `arithmetic` by which operations. There are
three implementations, which compute the same bits:

- `cpu`, compiled by numba. Its kernels are in `kernels`, `attention`, `quantize` and `product`, its instructions in
  `instructions`, `amx` and `tiles`, its data in `layout`, and its threads in `team`.
- `gpu`, in Triton. Its kernels are in `gpu_kernels` and `gpu_attention`; `gpu_sizes` says how much it computes at one
  time.
- `device`, in torch, on any device. Its operations are in `operations`.

Each must pass `selftest` before it is used. `choice` selects one, and `model` is the LM that the codec uses.
"""
