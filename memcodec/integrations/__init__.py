"""memcodec in other libraries: each module needs the one that it is named after, and is imported by who wants it."""
