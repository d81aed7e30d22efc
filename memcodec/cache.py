"""Where models, compiled kernels and results are kept."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import platformdirs

_UNUSED_SECONDS = 30 * 86_400  # age at which what nobody has used since is removed


def cache_folder() -> Path:
    """Where models, kernels and results are kept: MEMCODEC_CACHE, or the user's cache directory."""
    override = os.environ.get("MEMCODEC_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_dir("memcodec", appauthor=False))


def remove_unused(folder: Path, kept: Path) -> None:
    """Remove the files and folders in a folder of the cache that were not used for 30 days, except `kept`.

    Whoever uses one sets its time of modification. What cannot be removed stays.
    """
    with suppress(OSError):
        for other in folder.iterdir():
            with suppress(OSError):  # such as one that another process has removed meanwhile
                if other == kept or time.time() - other.stat().st_mtime <= _UNUSED_SECONDS:
                    continue
                if other.is_dir():
                    shutil.rmtree(other, ignore_errors=True)
                else:
                    other.unlink()
