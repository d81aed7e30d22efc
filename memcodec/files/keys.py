"""The keys of the documents of an archive: what can be one, and how they are packed (spec/FRAMES.md, "Archive")."""

from collections.abc import Iterable, Sequence

import zstandard

from memcodec.container import Reader, zstd_frame
from memcodec.document.inputs import as_many
from memcodec.errors import EncodeError, FormatError
from memcodec.wording import counted

MAX_KEY_BYTES = 1 << 12  # of one key
_MAX_KEYS_BYTES = 1 << 26  # of all keys


def as_keys(keys: Iterable[str] | None) -> list[str]:
    """Keys as a list, empty without any. Raises TypeError for one text, and for keys that are none."""
    given = list(as_many(() if keys is None else keys, "keys"))
    for key in given:
        if not isinstance(key, str):
            raise TypeError(f"keys: give str, not {type(key).__name__} ({key!r})")
    return given


def check_keys(keys: Sequence[str], count: int, places: Sequence[str] = ()) -> None:
    """Raise EncodeError for keys that are not one for each document, empty, too long, the same, or with NUL.

    count: of the documents; no keys at all are right too. places: what errors call the documents (default: by number).
    """
    if not keys:
        return

    def named(number: int) -> str:
        return places[number] if places else f"document {number}"

    if len(keys) != count:
        raise EncodeError(f"{counted(len(keys), 'key')} for {counted(count, 'document')}: give each its own")
    first: dict[str, int] = {}
    size = 0
    for number, key in enumerate(keys):
        if first.setdefault(key, number) != number:
            raise EncodeError(
                f"{named(number)}: its key {key!r} is also that of {named(first[key])}: give each its own"
            )
        try:
            encoded = key.encode()
        except UnicodeEncodeError as error:
            raise EncodeError(f"{named(number)}: its key {key!r} is not valid Unicode: give it another") from error
        if b"\0" in encoded:
            raise EncodeError(f"{named(number)}: its key {key!r} contains NUL: remove it")
        if not encoded:
            raise EncodeError(f"{named(number)}: its key is empty: give it one, or give no keys at all")
        if len(encoded) > MAX_KEY_BYTES:
            raise EncodeError(
                f"{named(number)}: its key has {len(encoded):,} bytes: keys have {MAX_KEY_BYTES:,} at most: shorten it"
            )
        size += len(encoded) + 1
    if size > _MAX_KEYS_BYTES:
        raise EncodeError(f"the keys have {size:,} bytes: all together have {_MAX_KEYS_BYTES:,} at most: shorten them")


def pack_keys(keys: Sequence[str]) -> bytes:
    """Keys as bytes, none without any."""
    return zstandard.ZstdCompressor(level=19).compress("\0".join(keys).encode()) if keys else b""


def unpack_keys(reader: Reader, count: int) -> list[str]:
    """The keys of `count` documents, empty if they have none. Raises FormatError."""
    length = reader.varint()
    packed = reader.take(length)
    if not length:
        return []
    try:
        most = min(_MAX_KEYS_BYTES, (MAX_KEY_BYTES + 1) * count)
        data = b"".join(zstd_frame.expand(packed, most))
        if len(data) > most or data.count(b"\0") != count - 1:
            raise FormatError("damaged archive: the numbers of keys and of documents do not match")
        return [key.decode() for key in data.split(b"\0")]  # not all as one text: one wide character would widen it
    except (zstandard.ZstdError, UnicodeDecodeError) as error:
        raise FormatError("damaged archive: its keys cannot be read") from error
