"""From logits to bytes and back, exactly: integer frequencies, a flag and a token for each position, a range coder."""
