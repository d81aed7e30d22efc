"""From logits to bytes and back: integer frequencies, a flag and a token under them, a range coder. All exact."""
