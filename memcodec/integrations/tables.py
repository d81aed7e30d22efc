"""Columns of text as columns of frames and back: for Arrow tables (and Parquet), pandas, and Hugging Face datasets.

The metadata of the column holds the name of the model, the settings, the primer, and the type that the column had.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from memcodec.codec import Codec, codec_for
from memcodec.container import ModelId, Needs
from memcodec.document.inputs import as_binary, as_bytes, check_type
from memcodec.errors import ChecksumError, EncodeError, FormatError
from memcodec.frames import FrameSettings, decode
from memcodec.integrations import column_types
from memcodec.integrations.loading import RecentCodecs, loaded, named
from memcodec.primer import Primer
from memcodec.settings import DEFAULT_MODEL
from memcodec.wording import counted

if TYPE_CHECKING:
    import pandas
    import pyarrow

_KEY = "memcodec"  # of the entry in the metadata
_PANDAS_KEY = b"memcodec.pandas"  # of what pandas' own metadata says about the column
_NUMBERS = ("checksum", "memory_share", "effort", "chunk_tokens", "max_bytes")
_recent = RecentCodecs(8)  # for columns of the same model and primer


@dataclass(frozen=True)
class Column:
    """What the frames of a column need: a model by name or directory, a primer as bytes, and their settings.

    type: the Arrow type that the column had and gets back, as Arrow prints it; "binary" is a column of bytes. pandas:
    the type of a series, if it was one. Tables and series set both themselves.

    Small and picklable: the model is loaded in the process that encodes or decodes, once.
    """

    model: str = DEFAULT_MODEL
    primer: bytes = b""
    settings: FrameSettings = FrameSettings()  # noqa: RUF009 (frozen)
    type: str = "string"
    pandas: str = ""

    _codec: ClassVar[Codec | None] = None  # of this column, when it is known: not a field, and not pickled

    def __post_init__(self) -> None:
        """Raises EncodeError for a type that is neither text nor bytes."""
        if not column_types.is_known(self.type):
            raise EncodeError(f"type {self.type!r}: only text and bytes become frames: give 'string' or 'binary'")

    @classmethod
    def of(
        cls, codec: Codec, settings: FrameSettings = FrameSettings(), *, type: str = "string"  # noqa: B008 (frozen)
    ) -> "Column":  # fmt: skip
        """The column of a loaded codec and its primer. type: "string" or "binary", for datasets; others set it."""
        check_type("codec", codec, Codec, "memcodec.Codec.load()")
        primer = codec.primer.to_bytes() if codec.primer else b""
        column = cls(codec.model.folder.source, primer, settings, type)
        return column._with(codec)

    @property
    def codec(self) -> Codec:
        """The codec, with the primer. Raises as `Codec.load`."""
        if self._codec is None:
            if (known := _recent.get(self.model, self.primer)) is not None:
                self._with(known)
            else:
                self.use(loaded(self.model))
                assert self._codec is not None
                _recent.keep(self.model, self.primer, self._codec)  # a relative path, too
        assert self._codec is not None
        return self._codec

    def use(self, codec: Codec) -> None:
        """Use a codec that this process has loaded; the column's primer replaces its own."""
        primer = Primer.from_bytes(self.primer) if self.primer else None
        self._with(codec.with_primer(primer))

    def _with(self, codec: Codec) -> "Column":
        """The same column, which keeps its codec from now on; others of the same model and primer find it too."""
        object.__setattr__(self, "_codec", codec)  # frozen; the codec is made from the fields
        if self.model == codec.model.folder.source:
            _recent.keep(self.model, self.primer, codec)
        return self

    def _changed(self, **fields: Any) -> "Column":
        """The same column with other fields, of which neither is the model nor the primer."""
        other = replace(self, **fields)
        return other if self._codec is None else other._with(self._codec)

    def __getstate__(self) -> dict[str, Any]:
        """The fields, for pickles and copies: the codec is found or loaded again."""
        return {name: value for name, value in self.__dict__.items() if name != "_codec"}

    def encode(self, values: "list[str | bytes | None]") -> list[bytes | None]:
        """The frames of texts, or of bytes if that is the column's type; None stays None. Raises EncodeError."""
        frames = iter(self.codec.encode_frames(self._checked(values), self.settings))
        return [None if value is None else next(frames) for value in values]

    def _checked(self, values: "list[str | bytes | None]") -> list[bytes]:
        """The bytes of the values that there are; refuses what would come back as something else."""
        binary = column_types.is_binary(self.type)
        found = []
        for row, value in enumerate(values):
            if value is None:
                continue
            if not isinstance(value, bytes if binary else str):
                wanted = "bytes: give bytes" if binary else "text: give str, or type='binary' for a column of bytes"
                raise EncodeError(f"row {row:,} is {type(value).__name__} in a column of {wanted}")
            data = as_bytes(value, f"row {row:,}")
            if len(data) > self.settings.max_bytes:
                most = f"frames have {self.settings.max_bytes:,} at most: raise max_bytes"
                raise EncodeError(f"row {row:,} has {counted(len(data), 'byte')}: {most}")
            found.append(data)
        return found

    def decode(self, frames: list[bytes | None]) -> "list[Any]":
        """The texts (or bytes) of frames; None stays None. Raises FormatError, ChecksumError, TypeError."""
        given = {row: as_binary(frame, f"row {row:,}") for row, frame in enumerate(frames) if frame is not None}
        labels = [f"row {row:,}" for row in given]
        found = decode(self.codec.model, list(given.values()), self.settings, None, labels=labels)
        values = [None if frame is None else next(found) for frame in frames]
        if column_types.is_binary(self.type):
            return values
        return [None if value is None else _decoded(row, value) for row, value in enumerate(values)]

    def encoder(self, name: str) -> "MapColumn":
        """For `dataset.map(..., batched=True)`: a function that turns a column of text into frames."""
        return MapColumn(self, name, True)

    def decoder(self, name: str) -> "MapColumn":
        """For `dataset.map(..., batched=True)`: a function that turns a column of frames into text."""
        return MapColumn(self, name, False)

    # ---- metadata

    def metadata(self) -> dict[str, str]:
        """One entry, as JSON: the name and identity of the model, the primer, the settings, and the type."""
        about = {
            "model": self.codec.name,  # not the directory: other machines have another
            "identity": ModelId.of(self.codec.name, self.codec.model.identity).identity.hex(),
            "primer": base64.b64encode(self.primer).decode(),
            "dictionary": base64.b64encode(self.settings.dictionary).decode(),
            "type": self.type,
            "pandas": self.pandas,
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
            raise FormatError(
                "the column has no metadata of memcodec: it does not hold frames, or has lost it (of a series, attrs)"
            )
        try:
            about = json.loads(entries[_KEY])
            primer, dictionary = (base64.b64decode(about[name]) for name in ("primer", "dictionary"))
            settings = FrameSettings(dictionary=dictionary, **{name: about[name] for name in _NUMBERS})
            model, identity = str(about["model"]), bytes.fromhex(about["identity"])
            type_, pandas_ = str(about.get("type", "string")), str(about.get("pandas", ""))
        except EncodeError as error:
            raise FormatError(f"memcodec's metadata of the column cannot be read: {error}") from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FormatError("memcodec's metadata of the column cannot be read") from error
        if not column_types.is_known(type_):
            raise FormatError(f"a column of type {type_!r}: install a newer memcodec")
        inside = Primer.from_bytes(primer) if primer else None
        needs = Needs(ModelId(model, identity), inside.identity if inside else b"")
        given = codec or named(needs.model)
        known = _recent.get(given.model.folder.source, primer)
        if known is not None and known.model.has_lm_of(given.model):  # it has the state after the primer
            given = known
        fitting = codec_for(needs, given, primer=inside)
        return cls(fitting.model.folder.source, primer, settings, type_, pandas_)._with(fitting)


@dataclass(frozen=True)
class MapColumn:
    """Maps batches (dictionaries of lists) to the new column. encodes: from text to frames; otherwise back."""

    column: Column
    name: str
    encodes: bool

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """The changed column. Raises as `Column.encode` and `Column.decode`; TypeError for a row instead of a batch."""
        values = batch[self.name]
        if values is None or isinstance(values, str | bytes):  # a row, whose characters would become the rows
            raise TypeError(f"column {self.name!r}: call map with batched=True")
        with _naming(f"column {self.name!r}"):
            return {self.name: (self.column.encode if self.encodes else self.column.decode)(list(values))}


# ---- Arrow


def encode_table(table: "pyarrow.Table", name: str, column: Column) -> "pyarrow.Table":
    """A table with a column of text or bytes turned into frames; a dictionary's values become frames.

    The column's metadata keeps its type. Raises EncodeError for other types, and for a column of frames.
    """
    import pyarrow

    check_type("table", table, pyarrow.Table, "pyarrow.Table.from_pandas(frame)")
    check_type("column", column, Column, "Column.of(codec)")
    field, what = table.schema.field(name), f"column {name!r}"
    old = field.metadata or {}
    if _KEY.encode() in old:
        raise EncodeError(f"{what} holds frames already: turn it into text with decode_table first")
    column = column._changed(type=column_types.name_of(field.type, what), pandas="")
    with _naming(what):
        frames = _mapped(table.column(name), pyarrow.binary(), column.encode)
    new = {key.encode(): value.encode() for key, value in column.metadata().items()}
    about = _pandas_column(table.schema, name)
    if about is not None and not pyarrow.types.is_dictionary(field.type):  # pandas reads frames as bytes
        new[_PANDAS_KEY] = json.dumps(about).encode()
        table = _with_pandas_column(table, name, about | {"pandas_type": "bytes", "numpy_type": "object"})
    field = field.with_type(frames.type).with_metadata(old | new)
    return table.set_column(table.schema.get_field_index(name), field, frames)


def decode_table(table: "pyarrow.Table", name: str, codec: Codec | None = None) -> "pyarrow.Table":
    """A table with a column of frames turned into what it was. Raises as `Column.from_metadata`, `Column.decode`."""
    import pyarrow

    check_type("table", table, pyarrow.Table, "pyarrow.parquet.read_table(file)")
    field, what = table.schema.field(name), f"column {name!r}"
    old = field.metadata
    with _naming(what):
        column = Column.from_metadata(old, codec)
        kind = column_types.arrow_type(column.type)
        data = table.column(name)
        if pyarrow.types.is_null(kind) and data.null_count < len(data):  # joined with a column of another type
            kind = pyarrow.string()
        inner = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        values = _mapped(data, inner, column.decode)
        values = _with_type(values, kind)
    if _PANDAS_KEY in old and _pandas_column(table.schema, name) is not None:
        table = _with_pandas_column(table, name, json.loads(old[_PANDAS_KEY]))
    kept = {key: value for key, value in old.items() if key not in (_KEY.encode(), _PANDAS_KEY)}
    field = field.with_type(kind).with_metadata(kept or None)
    return table.set_column(table.schema.get_field_index(name), field, values)


def _mapped(
    column: "pyarrow.ChunkedArray", kind: "pyarrow.DataType", function: Callable[[list[Any]], list[Any]]
) -> "pyarrow.ChunkedArray":
    """A column with other values, in the same chunks; those of dictionaries, where it has some."""
    import pyarrow

    if not pyarrow.types.is_dictionary(column.type):
        values = function(column.to_pylist())
        chunks, start = [], 0
        for chunk in column.chunks:
            chunks.append(pyarrow.array(values[start : start + len(chunk)], kind))
            start += len(chunk)
        return pyarrow.chunked_array(chunks, kind)
    old: list[Any] = []  # the different dictionaries
    new: list[Any] = []
    chunks = []
    for chunk in column.chunks:
        place = next((i for i, seen in enumerate(old) if seen.equals(chunk.dictionary)), len(old))
        if place == len(old):
            old.append(chunk.dictionary)
            new.append(pyarrow.array(function(chunk.dictionary.to_pylist()), kind))
        chunks.append(pyarrow.DictionaryArray.from_arrays(chunk.indices, new[place], ordered=column.type.ordered))
    return pyarrow.chunked_array(chunks, pyarrow.dictionary(column.type.index_type, kind, column.type.ordered))


def _with_type(column: "pyarrow.ChunkedArray", kind: "pyarrow.DataType") -> "pyarrow.ChunkedArray":
    """A column as a dictionary or none, as it was before something else, such as a Parquet reader, changed that."""
    import pyarrow

    if column.type == kind:
        return column
    if not pyarrow.types.is_dictionary(kind):
        return pyarrow.chunked_array([pyarrow.array(chunk.to_pylist(), kind) for chunk in column.chunks], kind)
    chunks = []
    for chunk in column.chunks:
        found = chunk if pyarrow.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        indices = found.indices.cast(kind.index_type)
        chunks.append(pyarrow.DictionaryArray.from_arrays(indices, found.dictionary, ordered=kind.ordered))
    return pyarrow.chunked_array(chunks, kind)


def _pandas_column(schema: "pyarrow.Schema", name: str) -> dict[str, Any] | None:
    """What pandas' metadata of a table say about a column."""
    about = schema.pandas_metadata or {}
    return next((one for one in about.get("columns", []) if one.get("field_name") == name), None)


def _with_pandas_column(table: "pyarrow.Table", name: str, column: dict[str, Any]) -> "pyarrow.Table":
    """A table whose pandas metadata say something else about a column."""
    about = table.schema.pandas_metadata
    columns = [column if one.get("field_name") == name else one for one in about["columns"]]
    metadata = dict(table.schema.metadata) | {b"pandas": json.dumps(about | {"columns": columns}).encode()}
    return table.replace_schema_metadata(metadata)


# ---- pandas


def encode_series(series: "pandas.Series", column: Column) -> "pandas.Series":
    """A series of frames of a series of text or bytes; of categories, the categories become frames.

    The metadata is in its `attrs`, and keeps the type. Raises EncodeError for other types, and for a series of frames.
    """
    import pandas

    check_type("series", series, pandas.Series, "frame['text']")
    check_type("column", column, Column, "Column.of(codec)")
    what = f"series {series.name!r}"
    if _KEY in series.attrs:
        raise EncodeError(f"{what} holds frames already: turn it into text with decode_series first")
    old: Any = series
    if isinstance(series.dtype, pandas.CategoricalDtype):
        old, ordered, codes = series.cat.categories, series.cat.ordered, series.cat.codes
        inner, name = column_types.names_of_values(old, f"{what}, a category,")
        kind, name = column_types.dictionary_name(inner, str(codes.dtype), ordered), f"category[{name}]"
    else:
        kind, name = column_types.names_of_values(series, what)
    column = column._changed(type=kind, pandas=name)
    with _naming(what):
        frames: list[Any] = column.encode([None if column_types.is_missing(value) else value for value in old])
    if old is not series:
        new = pandas.Categorical.from_codes(codes, pandas.Index(frames, dtype=object), ordered)
        result = pandas.Series(new, index=series.index, name=series.name)
    else:
        if name == "object":  # None, NaN and NA stay what they are
            frames = [value if frame is None else frame for frame, value in zip(frames, series, strict=True)]
        result = pandas.Series(frames, index=series.index, name=series.name, dtype=object)
    result.attrs = dict(series.attrs) | column.metadata()
    return result


def decode_series(series: "pandas.Series", codec: Codec | None = None) -> "pandas.Series":
    """A series of frames turned into what it was. Raises as `Column.from_metadata` and `Column.decode`."""
    import pandas

    check_type("series", series, pandas.Series, "frame['text']")
    with _naming(f"series {series.name!r}"):
        column = Column.from_metadata(series.attrs, codec)
        dtype = column_types.pandas_type(column.pandas, column.type)
        categories = isinstance(series.dtype, pandas.CategoricalDtype)
        old: Any = series.cat.categories if categories else series
        values = column.decode([None if column_types.is_missing(frame) else frame for frame in old])
    if column.pandas == "object":
        values = [old_ if value is None else value for value, old_ in zip(values, old, strict=True)]
    if categories:
        new = pandas.Categorical.from_codes(series.cat.codes, pandas.Index(values, dtype=dtype), series.cat.ordered)
        result = pandas.Series(new, index=series.index, name=series.name)
    else:
        result = pandas.Series(values, index=series.index, name=series.name, dtype=dtype)
        if column.pandas.startswith("category["):  # something else has made a plain series of the frames
            result = result.astype("category")
    result.attrs = {key: value for key, value in series.attrs.items() if key != _KEY}
    return result


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _decoded(row: int, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise FormatError(f"row {row:,} is not UTF-8: decode it as a column with type='binary'") from None


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Errors say which column they are about."""
    try:
        yield
    except (EncodeError, FormatError, ChecksumError, TypeError) as error:
        raise type(error)(f"{what}: {error}") from error
