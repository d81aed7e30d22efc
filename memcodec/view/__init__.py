"""What `inspect` and reports show of a file: its parts, its tokens, a page of HTML."""
