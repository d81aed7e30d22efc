"""Models of the Hugging Face hub: weights, configuration and tokenizer, but no code and no pickled files."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from memcodec.errors import ModelNotFoundError, first_line
from memcodec.progress import ByteProgress

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?")

_INDEX = "model.safetensors.index.json"  # has the name of the file of each tensor, if there are several files
_TOKENIZERS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"})  # the files of each kind
_PART = re.compile(r".*-\d+-of-(\d+)\.safetensors")  # one of these files


def fetch(name: str, progress: ByteProgress | None, offline: bool = False) -> Path:
    """A snapshot of a Hugging Face repository, without code and pickled files.

    progress: if None, the hub shows no progress bars either; offline: use only what has been downloaded before. Raises
    ModelNotFoundError.
    """
    import huggingface_hub
    import huggingface_hub.utils

    hub: Any = huggingface_hub.utils
    match = HUB_ID.fullmatch(name)
    assert match is not None
    wanted: dict[str, Any] = {
        "repo_id": match[1],
        "revision": match[2],
        "allow_patterns": ["*.safetensors", "*.json", "*.txt"],
    }
    with suppress(Exception):  # of various types, if it is not completely on this machine
        folder = Path(huggingface_hub.snapshot_download(**wanted, local_files_only=True))
        if _is_complete(folder):
            return folder
    if offline:
        raise ModelNotFoundError(
            f"the file needs {name!r} from the Hugging Face hub, which is not on this machine: to fetch it, allow the "
            "download (allow_download, --allow-download), or give a directory as model (--model)"
        )
    silenced = progress is None and not hub.are_progress_bars_disabled()  # otherwise the hub shows its own bars
    if silenced:
        hub.disable_progress_bars()
    try:
        return Path(huggingface_hub.snapshot_download(**wanted))
    except Exception as error:  # of various types: no network, no such repository, gated, offline
        raise ModelNotFoundError(
            f"{name!r} is not a directory, and it cannot be downloaded from the Hugging Face hub: {first_line(error)}"
        ) from error
    finally:
        if silenced:
            hub.enable_progress_bars()


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot has its configuration, a tokenizer and all weights: an interrupted download leaves a part.

    Raises OSError, and ValueError, LookupError, TypeError or AttributeError if the index of the weights is damaged.
    """
    names = {path.name for path in folder.iterdir() if path.is_file()}  # not of links to files that are missing
    if "config.json" not in names or not any(names >= files for files in _TOKENIZERS):
        return False
    if _INDEX in names:
        return names.issuperset(json.loads((folder / _INDEX).read_bytes())["weight_map"].values())
    weights = {name for name in names if name.endswith(".safetensors")}
    parts = [match for match in map(_PART.fullmatch, weights) if match]
    return bool(weights) and all(len(parts) >= int(match[1]) for match in parts)
