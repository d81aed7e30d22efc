"""A document on its way to the encoder: its bytes, what of them is text, and how that is cut."""
