"""Tables of places in a document, by a hash of the bytes there: an entry has bits of the hash above a position."""

MULTIPLIER = 0x9E3779B97F4A7C15
POSITION_BITS = 40
POSITION_MASK = (1 << POSITION_BITS) - 1
