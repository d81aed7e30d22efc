"""The entries of the hash tables of `repeats` and `unseen`: a position in the low bits, bits of a hash above it."""

from memcodec.lm import seeded

MULTIPLIER, MARK_MULTIPLIER = seeded.GOLDEN, seeded.FIRST  # odd numbers that mix all bits of a hash
POSITION_BITS = 40
POSITION_MASK = (1 << POSITION_BITS) - 1
