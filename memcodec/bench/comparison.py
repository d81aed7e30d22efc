"""All codecs on the same texts, by text size, memory share and search effort. A `Store` keeps every result."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memcodec.bench import measure, rivals
from memcodec.bench.results import Store, digest, machine
from memcodec.codec import Codec
from memcodec.errors import EncodeError
from memcodec.settings import DEFAULT_CHUNK_TOKENS, Context, Prompt, Readout

SHARES = (0.0, 0.1, 0.2)
EFFORTS = (256, 1024, 4096, 16384)
BOUND = "bound"
CONTEXT_BOUND = "bound, context of 2048"
CONTEXT_MAX_ROW = "memcodec 0, context max"
PROMPT = "memcodec, prompt site"
PROMPT_TOKENS = 48  # per chunk; one memory token of the default model can hold more (docs/memory_tokens.md)
PROMPT_STEPS = 400
LIMITS = (BOUND, CONTEXT_BOUND)  # ideal sizes, for which no file is written


@dataclass(frozen=True)
class Text:
    """A text of the benchmark. data: the first bytes of `whole`, which are compressed."""

    name: str
    data: bytes
    whole: bytes = field(repr=False)
    about: str = ""

    @classmethod
    def cut(cls, name: str, whole: bytes, size: int | None, about: str = "") -> "Text":
        """The first `size` bytes, or a few less so that no UTF-8 character is cut; the whole text if None."""
        end = len(whole) if size is None else min(size, len(whole))
        for _ in range(3):
            if 0 < end < len(whole) and whole[end] & 0xC0 == 0x80:
                end -= 1
        return cls(name, whole[:end], whole, about)


@dataclass(frozen=True)
class Row:
    """The result of one codec (or limit) on one text, as `measure` and `rivals` return it."""

    text: str
    codec: str
    original_bytes: int
    result: dict[str, Any]

    @property
    def file_bytes(self) -> float:
        """The size of the file in bytes; for a limit, the ideal size."""
        return float(self.result["file_bytes"])

    @property
    def ratio(self) -> float:
        """Original bytes divided by file bytes."""
        return self.original_bytes / self.file_bytes

    @property
    def bits_per_byte(self) -> float:
        """Bits of the file per byte of the original."""
        return 8 * self.file_bytes / self.original_bytes

    def speed(self, way: str) -> float | None:
        """Bytes of text per second; way: "encode" or "decode"; None for a limit."""
        seconds = self.result.get(f"{way}_seconds")
        return self.original_bytes / seconds if seconds else None

    @property
    def peak(self) -> int | None:
        """The larger of the encoder's and the decoder's peak resident memory, in bytes."""
        peaks = [self.result[f"{way}_peak"] for way in ("encode", "decode") if self.result.get(f"{way}_peak")]
        return max(peaks, default=None)


class Bench:
    """Measures texts with one loaded codec. say: is called with a description of each measurement."""

    def __init__(
        self, codec: Codec, store: Store, say: Callable[[str], None] = lambda _: None, batch: int | None = None
    ) -> None:
        """batch: groups decoded side by side."""
        self.codec = codec
        self.store = store
        self.threads = codec.lm.team.workers
        self._batch = batch
        self._say = say
        self._is_warm = False

    def compare(
        self,
        texts: Sequence[Text],
        shares: Sequence[float] = SHARES,
        names: Sequence[str] = tuple(rivals.RIVALS),
        context: Context = "auto",
    ) -> Iterator[Row]:
        """Measure all codecs and limits on all texts, the fast ones first. Raises BenchError."""
        for name in names:
            for text in texts:
                yield from self.rival(name, text, [other.whole for other in texts if other.name != text.name])
        for text in texts:
            yield self.limit(BOUND, text)
        for text in texts:
            yield self.limit(CONTEXT_BOUND, text)
        for share in shares:
            for text in texts:
                yield self.memcodec(text, Readout(share), context=context)

    def rival(self, name: str, text: Text, others: Sequence[bytes] = ()) -> Iterator[Row]:
        """Measure another compressor. No row if it is not installed, or has no texts to train its dictionary on."""
        rival = rivals.RIVALS[name]
        if not rivals.usable(name):
            self._say(f"{name}: skipped, because {rival.library} is not installed")
            return
        if rival.dictionary and not others:
            self._say(f"{name}: skipped, because there is no other text to train its dictionary on")
            return
        key: dict[str, Any] = {"codec": name, "version": rival.version, "file": digest(text.data), "machine": machine()}
        if rival.dictionary:
            key["others"] = [digest(other) for other in others]

        def run() -> dict[str, Any]:
            self._say(f"{name}: {text.name}")
            dictionary = rivals.train_dictionary(list(others)) if rival.dictionary else b""
            if rival.dictionary and not dictionary:
                return {}
            with tempfile.TemporaryDirectory() as folder:
                return rivals.measure_apart(name, text.data, Path(folder), dictionary)

        if result := self.store.get(key, run):
            yield Row(text.name, name, len(text.data), result)

    def limit(self, name: str, text: Text) -> Row:
        """Compute one of the two limits."""
        ideal = measure.bound if name == BOUND else measure.context_bound
        result = self.store.get(
            {"codec": name, "file": digest(text.data)} | self._identity(), lambda: self._measure(name, text, ideal)
        )
        return Row(text.name, name, len(text.data), result)

    def memcodec(
        self,
        text: Text,
        site: Readout | Prompt,
        name: str = "",
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
        context: Context = "auto",
    ) -> Row:
        """Measure memcodec with the settings of a site. The result has `failed`, an error, if a pure prompt fails."""
        name = name or f"memcodec {site.share:g}" if isinstance(site, Readout) else name
        settings = {"site": type(site).__name__, "chunk_tokens": chunk_tokens, "context": context} | asdict(site)
        key = {"codec": "memcodec", "settings": settings, "file": digest(text.data)} | self._identity()

        def run(codec: Codec, data: bytes) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "text.memz"
                try:
                    return measure.memcodec_file(
                        codec, data, path, self._batch, site=site, chunk_tokens=chunk_tokens, context=context
                    )
                except EncodeError as error:
                    return {"failed": str(error)}

        result = self.store.get(key, lambda: self._measure(name, text, run))
        return Row(text.name, name, len(text.data), result)

    def efforts(self, text: Text, efforts: Sequence[int] = EFFORTS, share: float = 0.1) -> list[dict[str, Any]]:
        """Size and time by search effort, at one memory share."""
        none = self.memcodec(text, Readout(0.0))
        result = []
        for effort in efforts:
            row = self.memcodec(text, Readout(share, effort), f"memcodec {share:g}, effort {effort}")
            seconds = row.result["encode_seconds"]
            result.append({"effort": effort, "encode_seconds": seconds} | memory_benefit(share, row, none))
        return result

    def prompt(self, text: Text, steps: int = PROMPT_STEPS) -> Row | str:
        """The pure form of the prompt site: one memory token per chunk, no corrections. The error if it fails."""
        row = self.memcodec(text, Prompt(steps=steps, pure=True), PROMPT, PROMPT_TOKENS)
        return row.result.get("failed", row)

    def _measure(self, name: str, text: Text, run: Callable[[Codec, bytes], dict[str, Any]]) -> dict[str, Any]:
        self._say(f"{name}: {text.name}")
        if not self._is_warm:  # compile the kernels
            self.codec.decode(self.codec.encode(text.data[:2000]), batch=self._batch)
            self._is_warm = True
        return run(self.codec, text.data)

    def _identity(self) -> dict[str, Any]:
        """What a result depends on in addition to text and settings: the model, the code, the versions, the machine."""
        lm = self.codec.lm
        running = {"device": lm.device, "threads": self.threads, "batch": self._batch}
        return {"model": lm.identity.hex(), "machine": machine()} | running


def memory_benefit(share: float, row: Row, without: Row) -> dict[str, Any]:
    """The benefit of a memory, compared with the same text `without` one. Bits are per token that the LM encodes.

    efficiency: bits of corrections saved, divided by the bits of the memory; None without a memory.
    """
    result, none = row.result, without.result
    tokens = max(1, result["tokens"])
    saved = none["correction_bytes"] - result["correction_bytes"]
    return {
        "share": share,
        "memory": 8 * result["memory_bytes"] / tokens,
        "corrections": 8 * result["correction_bytes"] / tokens,
        "total": 8 * (result["memory_bytes"] + result["correction_bytes"]) / tokens,
        "efficiency": saved / result["memory_bytes"] if result["memory_bytes"] else None,
        "hits": result["hits"] / tokens,
        "tokens": result["tokens"],
        "file_bytes": result["file_bytes"],
    }
