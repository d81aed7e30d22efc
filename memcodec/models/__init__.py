"""Where models come from, and what is made of them: float weights, the exact LM's integers, the tokenizer."""
