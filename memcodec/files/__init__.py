"""Files as Python objects: .memz files opened like `gzip.open`, reading from any place in them, and archives."""
