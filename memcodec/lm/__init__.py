"""The frozen LM, evaluated so that every bit of every result is the same on every machine (spec/FORMAT.md).

`architecture` says what is computed, `weights` with which integers, `arithmetic` by which operations; `kernels` and
`device` are two implementations of them that give the same bits, `selftest` is what each must pass, and `model` is the
LM that the codec sees.
"""
