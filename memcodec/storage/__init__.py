"""Writing to disk and to URLs: whole files or none, and side files of encoders that may be interrupted."""
