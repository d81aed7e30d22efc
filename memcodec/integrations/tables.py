"""Columns of text as columns of frames and back: for Arrow tables (and Parquet), pandas, and Hugging Face datasets.

The metadata of the column holds the name of the model, the settings and the primer.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from memcodec.codec import Codec, codec_for
from memcodec.container import ModelId, Needs
from memcodec.errors import FormatError
from memcodec.frames import FrameSettings
from memcodec.primer import Primer
from memcodec.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    import pandas
    import pyarrow

_KEY = "memcodec"  # of the entry in the metadata
_NUMBERS = ("checksum", "memory_share", "effort", "chunk_tokens", "max_bytes")


@dataclass(frozen=True)
class Column:
    """What the frames of a column need: a model by name or directory, a primer as bytes, and their settings.

    Small and picklable: the model is loaded in the process that encodes or decodes, once.
    """

    model: str = DEFAULT_MODEL
    primer: bytes = b""
    settings: FrameSettings = FrameSettings()  # noqa: RUF009 (frozen)

    @classmethod
    def of(cls, codec: Codec, settings: FrameSettings = FrameSettings()) -> "Column":  # noqa: B008 (frozen)
        """The column of a loaded codec and its primer."""
        column = cls(codec.name, codec.primer.to_bytes() if codec.primer else b"", settings)
        _known[column.model, column.primer] = codec
        return column

    @property
    def codec(self) -> Codec:
        """The codec, with the primer. Raises as `Codec.load`."""
        if (self.model, self.primer) not in _known:
            self.use(_loaded(self.model))
        return _known[self.model, self.primer]

    def use(self, codec: Codec) -> None:
        """Use a codec that this process has loaded; the column's primer replaces its own."""
        primer = Primer.from_bytes(self.primer) if self.primer else None
        _known[self.model, self.primer] = codec.with_primer(primer)

    def encode(self, texts: "list[str | bytes | None]") -> list[bytes | None]:
        """The frames of texts; None stays None. Raises EncodeError."""
        frames = iter(self.codec.encode_frames([text for text in texts if text is not None], self.settings))
        return [None if text is None else next(frames) for text in texts]

    def decode(self, frames: list[bytes | None]) -> list[str | None]:
        """The texts of frames; None stays None. Raises FormatError, ChecksumError, UnicodeDecodeError."""
        texts = iter(self.codec.decode_frames([frame for frame in frames if frame is not None], self.settings))
        return [None if frame is None else next(texts).decode() for frame in frames]

    def encoder(self, name: str) -> "MapColumn":
        """For `dataset.map(..., batched=True)`: a function that turns a column of text into frames."""
        return MapColumn(self, name, True)

    def decoder(self, name: str) -> "MapColumn":
        """For `dataset.map(..., batched=True)`: a function that turns a column of frames into text."""
        return MapColumn(self, name, False)

    # ---- metadata

    def metadata(self) -> dict[str, str]:
        """One entry, as JSON: the name and identity of the model, the primer, and the settings."""
        about = {
            "model": self.model,
            "identity": ModelId.of(self.model, self.codec.model.identity).identity.hex(),
            "primer": base64.b64encode(self.primer).decode(),
            "dictionary": base64.b64encode(self.settings.dictionary).decode(),
        }
        return {_KEY: json.dumps(about | {name: getattr(self.settings, name) for name in _NUMBERS})}

    @classmethod
    def from_metadata(cls, metadata: Mapping[Any, Any] | None, codec: Codec | None = None) -> "Column":
        """The column of what `metadata` returned. codec: a loaded one, instead of the model that the metadata names.

        A model that is not built in must be given as `codec`. Raises FormatError if memcodec's entry is missing or
        damaged; ModelMismatchError.
        """
        entries = {_text(key): _text(value) for key, value in (metadata or {}).items()}
        if _KEY not in entries:
            raise FormatError("the column has no metadata of memcodec: it does not hold frames")
        try:
            about = json.loads(entries[_KEY])
            numbers = {name: about[name] for name in _NUMBERS}
            primer, dictionary = (base64.b64decode(about[name]) for name in ("primer", "dictionary"))
            model, identity = str(about["model"]), bytes.fromhex(about["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError("memcodec's metadata of the column cannot be read") from error
        settings = FrameSettings(dictionary=dictionary, **numbers)
        settings.check()
        inside = Primer.from_bytes(primer) if primer else None
        needs = Needs(ModelId(model, identity), inside.identity if inside else b"")
        fitting = codec_for(needs, codec, primer=inside)
        column = cls(fitting.name, primer, settings)
        _known[column.model, primer] = fitting
        return column


@dataclass(frozen=True)
class MapColumn:
    """A function of batches (dictionaries of lists) that returns the new column. forth: text to frames, else back."""

    column: Column
    name: str
    forth: bool

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """The changed column."""
        return {self.name: (self.column.encode if self.forth else self.column.decode)(list(batch[self.name]))}


def encode_table(table: "pyarrow.Table", name: str, column: Column) -> "pyarrow.Table":
    """A table with a column of text turned into frames. Raises EncodeError."""
    import pyarrow

    frames = column.encode(table.column(name).to_pylist())
    old = table.schema.field(name).metadata or {}
    field = pyarrow.field(name, pyarrow.binary(), metadata=old | {k.encode(): v for k, v in column.metadata().items()})
    return table.set_column(table.schema.get_field_index(name), field, pyarrow.array(frames, pyarrow.binary()))


def decode_table(table: "pyarrow.Table", name: str, codec: Codec | None = None) -> "pyarrow.Table":
    """A table with a column of frames turned into text. Raises as `Column.from_metadata` and `Column.decode`."""
    import pyarrow

    old = table.schema.field(name).metadata
    texts = Column.from_metadata(old, codec).decode(table.column(name).to_pylist())
    field = pyarrow.field(name, pyarrow.string(), metadata={k: v for k, v in old.items() if _text(k) != _KEY})
    return table.set_column(table.schema.get_field_index(name), field, pyarrow.array(texts, pyarrow.string()))


def encode_series(series: "pandas.Series", column: Column) -> "pandas.Series":
    """A series of frames of a series of text; the metadata is in its `attrs`. Raises EncodeError."""
    import pandas

    frames = column.encode([None if pandas.isna(text) else text for text in series])
    result = pandas.Series(frames, index=series.index, name=series.name, dtype=object)
    result.attrs = dict(series.attrs) | column.metadata()
    return result


def decode_series(series: "pandas.Series", codec: Codec | None = None) -> "pandas.Series":
    """A series of text of a series of frames. Raises as `Column.from_metadata` and `Column.decode`."""
    import pandas

    column = Column.from_metadata(series.attrs, codec)
    texts = column.decode([frame if isinstance(frame, bytes) else None for frame in series])
    result = pandas.Series(texts, index=series.index, name=series.name)
    result.attrs = {key: value for key, value in series.attrs.items() if key != _KEY}
    return result


_known: dict[tuple[str, bytes], Codec] = {}  # by model and primer: what this process has loaded


@cache
def _loaded(model: str) -> Codec:
    return Codec.load(model)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
