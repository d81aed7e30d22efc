"""A codec that does not fit a file is one error everywhere, and no other model is loaded instead."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import memcodec
from memcodec import Archive, Codec, ModelMismatchError, Primer, PrimerMismatchError, container, token_map
from memcodec.codec import codec_for
from memcodec.files.decoded import Decoded
from memcodec.integrations.tables import Column

from .conftest import TEXT, store_nothing

# Each way to read a file with a codec.
READERS: dict[str, Callable[[Codec, bytes], object]] = {
    "decode": lambda codec, blob: codec.decode(blob),
    "decode_many": lambda codec, blob: codec.decode_many([blob]),
    "decode_pieces": lambda codec, blob: b"".join(codec.decode_pieces(container.unpack(blob))),
    "salvage": lambda codec, blob: list(codec.salvage(blob)),
    "tokens": lambda codec, blob: list(codec.tokens(container.unpack(blob))),
    "token map": lambda codec, blob: list(token_map(codec, container.unpack(blob))),
    "file": lambda codec, blob: memcodec.open(io.BytesIO(blob), codec=codec).read(),
    "range": lambda codec, blob: Decoded([container.unpack(blob)], lambda file: codec_for(_needs(file), codec)).read(3),
}


def _needs(parsed: container.Container) -> container.Needs:
    assert parsed.needs is not None
    return parsed.needs


@pytest.fixture(autouse=True)
def all_is_carried() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        store_nothing(patch)
        yield


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcodec.models.loaded.LoadedModel.load", None)


@pytest.mark.parametrize("way", READERS)
def test_another_model(tiny: Codec, llama: Codec, way: str, nothing_is_loaded: None) -> None:
    blob = tiny.encode(TEXT, verify=False)
    READERS[way](tiny, blob)
    with pytest.raises(ModelMismatchError, match="the file needs model 'tiny-llama'"):
        READERS[way](llama, blob)


@pytest.mark.parametrize("way", READERS)
def test_another_primer_or_none(tiny: Codec, way: str, nothing_is_loaded: None) -> None:
    primed = tiny.with_primer(Primer.from_texts([TEXT[::-1]], 20, tiny))
    blob = primed.encode(TEXT, verify=False)
    READERS[way](primed, blob)
    for wrong in (tiny, tiny.with_primer(Primer.from_texts([TEXT], 20, tiny))):
        with pytest.raises(PrimerMismatchError, match="the file needs the primer"):
            READERS[way](wrong, blob)


@pytest.mark.parametrize("way", READERS)
def test_a_primer_that_is_not_needed_is_not_used(tiny: Codec, way: str) -> None:
    blob = tiny.encode(TEXT, verify=False)
    primed = tiny.with_primer(Primer.from_texts([TEXT], 20, tiny))
    assert repr(READERS[way](primed, blob)) == repr(READERS[way](tiny, blob))


def test_archives_and_columns(tiny: Codec, llama: Codec, tmp_path: Path, nothing_is_loaded: None) -> None:
    Archive.create(tmp_path / "a", [TEXT], codec=tiny)
    with pytest.raises(ModelMismatchError, match="the file needs model 'tiny-llama'"):
        list(Archive(tmp_path / "a", llama))
    with pytest.raises(ModelMismatchError, match="the file needs model 'tiny-llama'"):
        Column.from_metadata(Column.of(tiny).metadata(), llama)


def test_a_model_by_name(tiny: Codec, random_path: Path, llama: Codec) -> None:
    blob = tiny.encode(TEXT, verify=False)
    with pytest.raises(ModelMismatchError, match="the file needs model 'tiny-llama'"):
        memcodec.decode(blob, str(random_path), device="cpu")
