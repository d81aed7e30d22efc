"""Models of the Hugging Face hub: weights, configuration and tokenizer; nothing that could run or unpickle."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from memcodec.errors import ModelNotFoundError, first_line
from memcodec.progress import ByteProgress

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\w[\w.-]*(?:/\w[\w.-]*)*))?")


def fetch(name: str, progress: ByteProgress | None, here_only: bool = False) -> Path:
    """A snapshot of a Hugging Face repository, without files that could run or unpickle."""
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
    with suppress(Exception):  # many kinds, for whatever is not all here
        found = Path(huggingface_hub.snapshot_download(**wanted, local_files_only=True))
        if (found / "config.json").is_file() and any(found.glob("*.safetensors")):
            return found
    if here_only:
        raise ModelNotFoundError(
            f"the file needs {name!r} from the Hugging Face hub, which is not on this machine: give --allow-download "
            "to fetch it, or a directory as --model"
        )
    silenced = progress is None and not hub.are_progress_bars_disabled()  # else the hub shows bars of its own
    if silenced:
        hub.disable_progress_bars()
    try:
        return Path(huggingface_hub.snapshot_download(**wanted))
    except Exception as error:  # many kinds: no network, no such repository, gated, offline
        raise ModelNotFoundError(
            f"{name!r} is no directory here, and the Hugging Face hub does not give it: {first_line(error)}"
        ) from error
    finally:
        if silenced:
            hub.enable_progress_bars()
