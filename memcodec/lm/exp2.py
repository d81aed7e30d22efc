"""Powers of two of negative integers, for attention weights and gates; for kernels on the CPU."""

import numpy as np

from memcodec.lm import arithmetic
from memcodec.lm.compiled import subkernel

EXP2_ONE = np.int32(1 << arithmetic.ATTENTION_BITS)
_END = np.int32(arithmetic.EXP2_END)
_C0, _C1, _C2, _C3 = (np.int32(coefficient) for coefficient in arithmetic.EXP2)
_TEN, _FRACTION = np.int32(10), np.int32(1023)


@subkernel
def exp2(below):
    """`arithmetic.exp2` of an int32 that is not negative. Only products and shifts, so loops over it become vectors."""
    below = min(below, _END)
    fraction = below & _FRACTION
    weight = np.int32(_C2 - (np.int32(fraction * _C3) >> _TEN))
    weight = np.int32(_C1 - (np.int32(fraction * weight) >> _TEN))
    weight = np.int32(_C0 - (np.int32(fraction * weight) >> _TEN))
    return np.int32(weight >> (below >> _TEN))
