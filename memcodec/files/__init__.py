"""What is read from and written to storage: files, archives, frames, primers, journals."""
