"""The first steps of encoding a document: its bytes are read, the text in them is found and cut into groups."""
