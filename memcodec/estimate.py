"""How long encoding takes: the share of each stage, for reports of progress, and seconds for a whole document."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from memcodec.bound import token_bits
from memcodec.document.blocks import Block
from memcodec.document.plan import GROUP_CONTEXTS
from memcodec.lm.sequences import ON_CPU, READ_ROWS
from memcodec.models.loaded import LoadedModel
from memcodec.progress import Progress, ProgressCallback, Reporter
from memcodec.settings import MAX_CONTEXT, EncodeSettings, Readout

# In units of the time of one token in a full pass of the LM, which `seconds_to_encode` measures.
_FIT_TIME = {"readout": 1.1, "prompt": 100.0}  # fitting and encoding one token
_PASS_TIME = 1.0  # verifying one token in a full pass
_STEP_TIME = 1.0  # verifying one token in a step with many rows
_SINGLE_ROW_TIME = 3.5  # additional time for each step of the decoder, divided among its rows

_BYTES_PER_TOKEN = 4


def seconds_to_encode(model: LoadedModel, size: int, settings: EncodeSettings) -> float:
    """The approximate number of seconds to encode `size` bytes of text here, from a short measurement of the LM."""
    tokens = np.arange(min(READ_ROWS // 2, model.positions)) % model.lm.vocabulary
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        token_bits(model.lm, tokens)
        seconds.append(time.perf_counter() - start)
    return size / _BYTES_PER_TOKEN * min(seconds) / len(tokens) * sum(_times(size, settings).values())


def _times(size: int, settings: EncodeSettings) -> dict[str, float]:
    """The time of each stage for one token."""
    fit = _FIT_TIME["readout" if isinstance(settings.site, Readout) else "prompt"]
    verify = _PASS_TIME if settings.verify else 0.0
    if settings.verify == "steps":
        verify = _STEP_TIME + _SINGLE_ROW_TIME / _rows_verified(size, settings)
    return {"fit": fit, "verify": verify}


def _rows_verified(size: int, settings: EncodeSettings) -> int:
    """The approximate number of groups that are verified side by side in steps."""
    context, tokens, most = settings.context, size // _BYTES_PER_TOKEN + 1, settings.batch or ON_CPU.sequences
    if context == "auto":
        return min(most, settings.level.rule.number(tokens, MAX_CONTEXT))
    group = GROUP_CONTEXTS * context if isinstance(context, int) else tokens
    return min(most, -(-tokens // (group or settings.chunk_length(MAX_CONTEXT))))


class Stages:
    """The two stages of encoding, "fit" and "verify", which report to one callback as parts of the whole."""

    def __init__(self, callback: ProgressCallback | None, size: int, settings: EncodeSettings) -> None:
        """size: of all documents together, in bytes."""
        self._callback = callback
        times = _times(size, settings)
        self._shares = {stage: time / sum(times.values()) for stage, time in times.items()}
        self._done = dict.fromkeys(times, 0.0)
        report = self._report if callback else None
        self.fit = Reporter(report, "fit", size)
        self.verify = Reporter(report, "verify", size)

    def _report(self, progress: Progress) -> None:
        assert self._callback is not None
        self._done[progress.stage] = progress.done  # with many documents, the stages alternate
        whole = sum(self._shares[stage] * done for stage, done in self._done.items())
        self._callback(replace(progress, done=min(whole, 1.0)))


def announced(blocks: Iterable[Block], report: Reporter) -> Iterator[Block]:
    """The blocks, each of which is announced to a reporter when it is read."""
    for block in blocks:
        report.expect(block.lengths, block.size)
        yield block
