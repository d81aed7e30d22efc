"""memcodec in other libraries. Each module needs the library that it is named after; import it to use it."""
