"""How long the chunks of a run of tokens are: a rule of the format, which writers and readers share."""


def chunk_lengths(tokens: int, chunk_tokens: int) -> list[int]:
    """Tokens of each chunk of a run or segment: the fewest chunks, as even as can be, the longer ones first."""
    count = -(-tokens // chunk_tokens)
    return [tokens // count + (i < tokens % count) for i in range(count)]
