"""The parts and the tokens of a file, as `inspect` and reports show them, and an HTML page."""
