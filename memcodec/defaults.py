"""The settings that nobody chose; here, without torch, so that `--help` can name them at once."""

DEFAULT_MARGIN = 1e-3  # logits; 8 times the largest difference that was measured (docs/margin.md)
DEFAULT_EFFORT = 4096  # states that the search tries per token
DEFAULT_BATCH = 64  # chunks decoded side by side
DEFAULT_BITS = 16  # prompt site: bits per dimension
DEFAULT_STEPS = 800  # prompt site: steps of gradient descent a chunk, at most
