"""Cases done in a process of its own, so that one that hangs, ends it, or takes too much memory is seen and named."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

PATIENCE = 120.0  # seconds that one case may take before it counts as one that hangs


@dataclass(frozen=True)
class Outcome:
    """What became of a case. word: what its check said, "hangs" or "ends the process"; memory: bytes by which the
    peak of the process grew."""

    name: str
    word: str
    seconds: float
    memory: int


def run(make: Callable[..., Iterator[tuple[str, Callable[[], str]]]], *given: object) -> Iterator[Outcome]:
    """Outcomes of the cases that `make(*given)` names and gives, in a process of its own, in order.

    make: what it does before its first case is not measured; after a case that hangs or ends the process, another
    process goes on with the next.
    """
    context, first = multiprocessing.get_context("spawn"), 0
    while True:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, first, make, given), daemon=True)
        process.start()
        theirs.close()
        name, start = "", time.monotonic()
        try:
            while True:
                if not ours.poll(PATIENCE if name else None):
                    yield Outcome(name, "hangs", time.monotonic() - start, 0)
                    break
                message = ours.recv()
                if message is None:
                    return
                if isinstance(message, str):
                    name, start = message, time.monotonic()
                else:
                    yield message
                    name, first = "", first + 1
        except EOFError:
            yield Outcome(name or "start", "ends the process", time.monotonic() - start, 0)
            if not name:
                return
        finally:
            process.kill()
            process.join()
        first += 1


def _work(
    out: Connection, first: int, make: Callable[..., Iterator[tuple[str, Callable[[], str]]]], given: tuple[object, ...]
) -> None:
    for number, (name, case) in enumerate(make(*given)):
        if number < first:
            continue
        out.send(name)
        before, start = _reset_peak(), time.monotonic()
        word = case()
        out.send(Outcome(name, word, time.monotonic() - start, _memory("VmHWM") - before))
    out.send(None)


def _reset_peak() -> int:
    """Resident bytes, from which on the highest is counted anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
