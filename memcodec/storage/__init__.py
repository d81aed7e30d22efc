"""Writing to disk and to URLs: complete files or none, and side files of encoders that may be interrupted."""
