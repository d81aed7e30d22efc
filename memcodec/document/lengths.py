"""The lengths of the chunks of a run of tokens: a rule of the format, which encoders and decoders share."""


def chunk_lengths(tokens: int, chunk_tokens: int) -> list[int]:
    """Tokens of each chunk of a run or segment: the fewest, with lengths that differ by at most 1, longer first."""
    count = -(-tokens // chunk_tokens)
    return [tokens // count + (i < tokens % count) for i in range(count)]
