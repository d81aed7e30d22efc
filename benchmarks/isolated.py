"""Runs cases in a separate process, to find those that hang, end the process, or use too much memory."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

TIMEOUT = 120.0  # seconds after which a case counts as hanging


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case. word: the result of the case, "hangs" or "ends the process"; memory: the bytes by which
    the peak of the process grew."""

    name: str
    word: str
    seconds: float
    memory: int


def run(make: Callable[..., Iterator[tuple[str, Callable[[], str]]]], *given: object) -> Iterator[Outcome]:
    """The outcomes of the cases that `make(*given)` yields with their names, run in order in a separate process.

    make: its work before the first case is not measured. After a case that hangs or ends the process, another process
    continues with the next case.
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
                if not ours.poll(TIMEOUT if name else None):
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
    """Reset the peak, and return the resident bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
