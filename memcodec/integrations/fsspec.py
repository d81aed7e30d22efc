"""fsspec: after `import memcodec.integrations.fsspec`, a compression named "memz".

`fsspec.open(..., compression="infer")` then decompresses files whose names end in .memz, and so do libraries that use
fsspec.
"""

from typing import IO, Any, cast

from fsspec.compression import register_compression

from memcodec.codec import Codec
from memcodec.document.inputs import check_type
from memcodec.files.open import MemzFile
from memcodec.files.open import open as open_memz


def register(**settings: Any) -> None:
    """Register "memz", or replace its settings: codec, primer and settings of writing, as in `memcodec.open`."""

    if settings.get("codec") is not None:
        check_type("codec", settings["codec"], Codec, "memcodec.Codec.load()")

    def opened(file: IO[bytes], mode: str = "rb", **_: Any) -> MemzFile:
        kind = mode.replace("b", "").replace("t", "") or "r"
        reading = {name: value for name, value in settings.items() if name in ("codec", "primer")}
        return cast(MemzFile, open_memz(cast(Any, file), kind, **(reading if kind == "r" else settings)))

    register_compression("memz", opened, "memz", force=True)


register()
