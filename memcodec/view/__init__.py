"""What people are shown of a file: its parts, its tokens, a page."""
