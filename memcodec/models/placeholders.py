"""Files of a model folder that are there in name only: empty ones, and pointers of Git LFS."""

from pathlib import Path

from memcodec.errors import ModelNotFoundError

_POINTER = b"version https://git-lfs.github.com/spec/"  # the first bytes of a pointer


def check_content(path: Path) -> None:
    """Raise ModelNotFoundError if a file is empty, or a pointer of Git LFS instead of the file itself."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise ModelNotFoundError(f"{path}: it cannot be read ({error.strerror or error})") from error
    if not start:
        raise ModelNotFoundError(f"{path}: the file is empty: download the model again")
    if start == _POINTER:
        raise ModelNotFoundError(f"{path}: a pointer of Git LFS, not the file itself: run git lfs pull in its folder")
