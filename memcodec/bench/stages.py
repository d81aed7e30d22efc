"""The time that the codec spends in each stage, compared with that of the LM: `memcodec bench --profile`."""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from memcodec import container
from memcodec.bench.rivals import BenchError
from memcodec.codec import Codec
from memcodec.coding import corrections
from memcodec.coding.distribution import Predictions
from memcodec.coding.placed import is_on_device
from memcodec.container import assembly, layout
from memcodec.document import blocks, spans
from memcodec.document.repeats import Repeats
from memcodec.memory import readout
from memcodec.models.tokenizer import ByteTokenizer
from memcodec.settings import Context

LM = ("LM: passes", "LM: logits")
REST = "the rest"

_Functions = list[tuple[Any, str]]  # modules and classes with the names by which callers find a function there

# The functions that are timed, by stage.
_STAGES: dict[str, _Functions] = {
    "tokens": [
        (spans, "find_text"),
        (blocks, "find_text"),
        *((ByteTokenizer, name) for name in ("encode_each", "decode", "decode_each", "sizes")),
    ],
    "search for repeats": [(Repeats, "cut")],
    "predictions from logits": [(Predictions, "fill")],
    "search for memories": [(readout, "search")],
    "corrections, written": [(corrections, "write")],
    "corrections, read": [(corrections.Decoder, "step")],
    "zstd": [
        (spans, "zstd_size"),
        *((assembly, name) for name in ("zstd_size", "estimated_size", "estimated_sizes")),
        (layout, "compress"),
    ],
    "container": [(container, "pack"), (assembly, "pack"), (container, "unpack_all")],
}


class _Clock:
    """Seconds by stage. If a stage runs within another, its time counts for the inner one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._threads = threading.local()  # of each thread, the seconds in inner stages of each stage that it is in

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **settings: Any) -> Any:
            inner: list[float] = self._threads.__dict__.setdefault("inner", [0.0])
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **settings)
            finally:
                spent = time.perf_counter() - start
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent - inner.pop()
                inner[-1] += spent

        return call

    @contextmanager
    def running(self, stages: dict[str, _Functions]) -> Iterator[None]:
        before = [(owner, name, getattr(owner, name)) for found in stages.values() for owner, name in found]
        try:
            for stage, functions in stages.items():
                for owner, name in functions:
                    setattr(owner, name, self.timed(stage, getattr(owner, name)))
            start = time.perf_counter()
            yield
            self.seconds[REST] = max(0.0, time.perf_counter() - start - sum(self.seconds.values()))
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)


def profile(
    codec: Codec, data: bytes, context: Context = "auto", batch: int | None = None
) -> dict[str, dict[str, float]]:
    """Encode (without verification) and decode once. Returns the seconds by stage of each. Raises BenchError."""
    codec.decode(codec.encode(data[:2000]), batch=batch)  # compiles the kernels
    stages = functions_by_stage(codec)
    encode, decode = _Clock(), _Clock()
    with encode.running(stages):
        blob = codec.encode(data, context=context, verify=False)
    with decode.running(stages):
        back = codec.decode(blob, batch=batch)
    if back != data:
        raise BenchError("memcodec: does not decode to its input")
    return {"encode": encode.seconds, "decode": decode.seconds}


def functions_by_stage(codec: Codec) -> dict[str, _Functions]:
    """The functions that are timed for a codec, by stage."""
    owner = type(codec.lm.sequences(1, 1, 1))
    passes: _Functions = [(owner, "forward"), (owner, "step")]
    logits: _Functions = [(owner, "logits"), (owner, "placed_logits")]
    stages = dict(zip(LM, (passes, logits), strict=True)) | _STAGES
    if is_on_device(codec.lm):
        from memcodec.coding.gpu import GpuDecoder
        from memcodec.memory.search_gpu import GpuSearch

        stages["search for memories"] = [*stages["search for memories"], (GpuSearch, "__call__")]
        stages["steps, with corrections"] = [(GpuDecoder, "steps")]
    return stages


def render(data: bytes, found: dict[str, dict[str, float]]) -> str:
    """A table for the terminal."""
    lines = []
    for way, seconds in found.items():
        own, total = sum(seconds.get(stage, 0.0) for stage in LM), sum(seconds.values())
        lines.append(f"{way}, {len(data) / total:,.0f} bytes/s{'s':>22}{'of the LM':>12}")
        for stage, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
            lines.append(f"  {stage:32}{spent:9.2f}{spent / own if own else 0:12.1%}")
        lines.append(f"  {'all':32}{total:9.2f}{total / own if own else 0:12.1%}\n")
    return "\n".join(lines).rstrip()
