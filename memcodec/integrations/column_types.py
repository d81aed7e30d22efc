"""The types of columns that can become frames, by names that metadata can hold: Arrow's, and those of pandas.

Names are as Arrow prints them: "large_string", "fixed_size_binary[4]", "dictionary<values=string, indices=int8,
ordered=0>". A name for pandas says more than Arrow knows: "str[python]", "category[object]", "arrow" for an ArrowDtype.
"""

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from memcodec.errors import EncodeError, FormatError

if TYPE_CHECKING:
    import pandas
    import pyarrow

_PLAIN = {"string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null"}
_FIXED = re.compile(r"fixed_size_binary\[(\d{1,9})\]")
_DICTIONARY = re.compile(r"dictionary<values=(.+), indices=(u?int(?:8|16|32|64)), ordered=([01])>")
_STRINGS = re.compile(r"(str|string)\[(\w+)\]")  # pandas' StringDtype: which missing value it has, and its storage
_CATEGORIES = re.compile(r"category\[(.+)\]")


def values_of(name: str) -> str:
    """The type of the values: of a dictionary's, or the type itself."""
    found = _DICTIONARY.fullmatch(name)
    return found[1] if found else name


def is_binary(name: str) -> bool:
    """Whether the values are bytes, and not text."""
    return "binary" in values_of(name)


def is_known(name: str) -> bool:
    """Whether a column of this type can become frames and come back."""
    inner = values_of(name)
    return inner in _PLAIN or _FIXED.fullmatch(inner) is not None


# ---- Arrow


def name_of(kind: "pyarrow.DataType", what: str) -> str:
    """The name of a type. what: of the column, for the error. Raises EncodeError if it is neither text nor bytes."""
    if is_known(str(kind)):
        return str(kind)
    raise EncodeError(f"{what} is {kind}: only text and bytes become frames: cast it to string or binary")


def arrow_type(name: str) -> "pyarrow.DataType":
    """The type of a name. Raises FormatError if this memcodec or this pyarrow does not know it."""
    import pyarrow

    if found := _DICTIONARY.fullmatch(name):
        return pyarrow.dictionary(pyarrow.type_for_alias(found[2]), arrow_type(found[1]), found[3] == "1")
    if fixed := _FIXED.fullmatch(name):
        return pyarrow.binary(int(fixed[1]))
    try:
        if name in _PLAIN:
            return pyarrow.type_for_alias(name)
    except ValueError:
        pass
    raise FormatError(f"a column of type {name!r}: install a newer memcodec or pyarrow")


def dictionary_name(values: str, indices: str, ordered: bool) -> str:
    """The name of a dictionary type."""
    return f"dictionary<values={values}, indices={indices}, ordered={int(ordered)}>"


# ---- pandas


def names_of_values(values: "pandas.Series | pandas.Index", what: str) -> tuple[str, str]:
    """The names for Arrow and for pandas of the type of values, not categories. Raises EncodeError as `name_of`."""
    import pandas

    dtype = values.dtype
    if isinstance(dtype, pandas.ArrowDtype):
        return name_of(dtype.pyarrow_dtype, what), "arrow"
    if isinstance(dtype, pandas.StringDtype):
        missing = "string" if dtype.na_value is pandas.NA else "str"
        return "string", f"{missing}[{dtype.storage}]"
    if pandas.api.types.is_object_dtype(dtype):
        first = next((value for value in values if not is_missing(value)), "")
        return ("binary" if isinstance(first, bytes) else "string"), "object"
    raise EncodeError(f"{what} is {dtype}: only text and bytes become frames: turn it into one with astype")


def pandas_type(name: str, arrow: str) -> Any:
    """The dtype of a name for pandas; None for that which pandas chooses. arrow: the name for Arrow.

    Raises FormatError as `arrow_type`.
    """
    import pandas

    if name == "object" or (not name and is_binary(arrow)):
        return object
    if name == "arrow":
        return pandas.ArrowDtype(arrow_type(arrow))
    if found := _CATEGORIES.fullmatch(name):
        return pandas_type(found[1], values_of(arrow))
    if found := _STRINGS.fullmatch(name):
        options: dict[str, Any] = {} if found[1] == "string" else {"na_value": float("nan")}
        with suppress(ValueError):  # a storage that pandas does not know
            return pandas.StringDtype(found[2], **options)
    if name:
        raise FormatError(f"a series of type {name!r}: install a newer memcodec or pandas")
    return None


def is_missing(value: Any) -> bool:
    """Whether a value of a series is one of those that mean that there is none: None, NaN, NA, NaT."""
    import pandas

    if isinstance(value, str | bytes):
        return False
    return bool(pandas.api.types.is_scalar(value) and pandas.isna(value))
