"""Where models, compiled kernels and results are kept."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Where models, kernels and results are kept: MEMCODEC_CACHE, or the user's cache directory."""
    override = os.environ.get("MEMCODEC_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("memcodec", appauthor=False))
