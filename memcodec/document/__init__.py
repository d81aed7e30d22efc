"""What an encoder does with a document first: read its bytes, find the text in them, and cut it into groups."""
