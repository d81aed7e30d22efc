"""Columns of text as columns of frames and back: for Arrow tables (and Parquet), pandas, and Hugging Face datasets.

Model, settings and primer are in the metadata of the column, so that whoever reads needs nothing else.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from memcodec.codec import Codec
from memcodec.errors import FormatError, ModelMismatchError
from memcodec.files.frames import FrameSettings
from memcodec.files.primer import Primer

if TYPE_CHECKING:
    import pandas
    import pyarrow

_KEY = "memcodec"  # of the metadata
_NUMBERS = ("checksum", "memory_share", "effort", "chunk_tokens", "max_bytes")


@dataclass(frozen=True)
class Column:
    """What frames of a column need: a model by name or directory, a primer as bytes, and their settings.

    Small and picklable: the model is loaded where frames are made, once a process.
    """

    model: str = "smollm2-135m"
    primer: bytes = b""
    settings: FrameSettings = FrameSettings()  # noqa: RUF009 (frozen)

    @classmethod
    def of(cls, codec: Codec, settings: FrameSettings = FrameSettings()) -> "Column":  # noqa: B008 (frozen)
        """The same for a codec that is loaded, and its primer."""
        column = cls(codec.name, codec.primer.to_bytes() if codec.primer else b"", settings)
        _known[column.model, column.primer] = codec
        return column

    @property
    def codec(self) -> Codec:
        """The model behind the primer. Raises as `Codec.load`."""
        if (self.model, self.primer) not in _known:
            self.use(_loaded(self.model))
        return _known[self.model, self.primer]

    def use(self, codec: Codec) -> None:
        """Let this process make the column's frames with a codec that it has loaded, whatever its primer."""
        primer = Primer.from_bytes(self.primer) if self.primer else None
        _known[self.model, self.primer] = codec.with_primer(primer)

    def encode(self, texts: "list[str | bytes | None]") -> list[bytes | None]:
        """Frames of some texts; None stays None. Raises EncodeError."""
        frames = iter(self.codec.encode_frames([text for text in texts if text is not None], self.settings))
        return [None if text is None else next(frames) for text in texts]

    def decode(self, frames: list[bytes | None]) -> list[str | None]:
        """The texts. Raises FormatError, ChecksumError; UnicodeDecodeError for what was not text."""
        texts = iter(self.codec.decode_frames([frame for frame in frames if frame is not None], self.settings))
        return [None if frame is None else next(texts).decode() for frame in frames]

    def encoder(self, name: str) -> "MapColumn":
        """For `dataset.map(..., batched=True)`: makes frames of a column of text."""
        return MapColumn(self, name, True)

    def decoder(self, name: str) -> "MapColumn":
        """For `dataset.map(..., batched=True)`: makes text of a column of frames."""
        return MapColumn(self, name, False)

    # ---- what stands with a column

    def metadata(self) -> dict[str, str]:
        """As JSON in one entry; names the model and its identity, and holds the primer."""
        about = {
            "model": self.model,
            "identity": self.codec.model.identity.hex(),
            "primer": base64.b64encode(self.primer).decode(),
            "dictionary": base64.b64encode(self.settings.dictionary).decode(),
        }
        return {_KEY: json.dumps(about | {name: getattr(self.settings, name) for name in _NUMBERS})}

    @classmethod
    def from_metadata(cls, metadata: Mapping[Any, Any] | None, codec: Codec | None = None) -> "Column":
        """What `metadata` gave. codec: instead of the model that it names.

        A model that is no built-in one must be given as `codec`. Raises FormatError where there is nothing of
        memcodec's, or it is damaged; ModelMismatchError.
        """
        found = {_text(key): _text(value) for key, value in (metadata or {}).items()}
        if _KEY not in found:
            raise FormatError("the column has no metadata of memcodec: it is not of frames")
        try:
            about = json.loads(found[_KEY])
            numbers = {name: about[name] for name in _NUMBERS}
            primer, dictionary = (base64.b64decode(about[name]) for name in ("primer", "dictionary"))
            model, identity = str(about["model"]), bytes.fromhex(about["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError("the column's metadata of memcodec do not read") from error
        settings = FrameSettings(dictionary=dictionary, **numbers)
        settings.check()
        plain = codec or Codec.load_named(None, model)
        column = cls(plain.name, primer, settings)
        if plain.model.identity != identity:
            raise ModelMismatchError(f"the column needs model {model!r} ({identity.hex()}): give it as codec")
        _known[column.model, primer] = plain.with_primer(Primer.from_bytes(primer) if primer else None)
        return column


@dataclass(frozen=True)
class MapColumn:
    """A function of batches, which are dictionaries of lists; others of their columns stay as they are."""

    column: Column
    name: str
    forth: bool

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Only the column that changes."""
        return {self.name: (self.column.encode if self.forth else self.column.decode)(list(batch[self.name]))}


def encode_table(table: "pyarrow.Table", name: str, column: Column) -> "pyarrow.Table":
    """A table whose column of text is one of frames. Raises EncodeError."""
    import pyarrow

    frames = column.encode(table.column(name).to_pylist())
    old = table.schema.field(name).metadata or {}
    field = pyarrow.field(name, pyarrow.binary(), metadata=old | {k.encode(): v for k, v in column.metadata().items()})
    return table.set_column(table.schema.get_field_index(name), field, pyarrow.array(frames, pyarrow.binary()))


def decode_table(table: "pyarrow.Table", name: str, codec: Codec | None = None) -> "pyarrow.Table":
    """The table with the column of text. Raises as `Column.from_metadata` and `Column.decode`."""
    import pyarrow

    old = table.schema.field(name).metadata
    texts = Column.from_metadata(old, codec).decode(table.column(name).to_pylist())
    field = pyarrow.field(name, pyarrow.string(), metadata={k: v for k, v in old.items() if _text(k) != _KEY})
    return table.set_column(table.schema.get_field_index(name), field, pyarrow.array(texts, pyarrow.string()))


def encode_series(series: "pandas.Series", column: Column) -> "pandas.Series":
    """A series of frames; its `attrs` say of which model. Raises EncodeError."""
    import pandas

    frames = column.encode([None if pandas.isna(text) else text for text in series])
    made = pandas.Series(frames, index=series.index, name=series.name, dtype=object)
    made.attrs = dict(series.attrs) | column.metadata()
    return made


def decode_series(series: "pandas.Series", codec: Codec | None = None) -> "pandas.Series":
    """The series of text. Raises as `Column.from_metadata` and `Column.decode`."""
    import pandas

    column = Column.from_metadata(series.attrs, codec)
    texts = column.decode([frame if isinstance(frame, bytes) else None for frame in series])
    made = pandas.Series(texts, index=series.index, name=series.name)
    made.attrs = {key: value for key, value in series.attrs.items() if key != _KEY}
    return made


_known: dict[tuple[str, bytes], Codec] = {}  # by model and primer: what this process has loaded


@cache
def _loaded(model: str) -> Codec:
    return Codec.load(model)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
