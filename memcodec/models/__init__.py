"""Models: where they are found, and what is loaded of them: float weights, weights of the exact LM, the tokenizer."""
