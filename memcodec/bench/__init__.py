"""The benchmark of `memcodec bench`: memcodec, its bound and other compressors on the same texts."""
