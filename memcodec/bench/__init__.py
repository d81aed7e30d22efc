"""The benchmark: memcodec, its bound and the classic compressors on the same texts. Behind `memcodec bench`."""
