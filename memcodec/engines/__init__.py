"""Engines encode, decode and verify groups: in this process, or on the workers of a cluster. The bytes are the same."""

from collections.abc import Iterator
from contextlib import contextmanager

from memcodec.engines.engine import Engine
from memcodec.engines.local import Local
from memcodec.errors import EncodeError, MissingDependencyError
from memcodec.settings import ENGINES


def find_engine(name: str, workers: int | None = None, threads: int | None = None, device: str = "auto") -> Engine:
    """The engine of a name, "local" or "ray". workers, threads, device: as in `RayEngine`; the local engine has none.

    Raises EncodeError for another name or settings out of range, MissingDependencyError if Ray is not installed.
    """
    if name == "local":
        return Local()
    if name != "ray":
        raise EncodeError(f"engine {name!r}: give {' or '.join(ENGINES)}")
    try:
        from memcodec.engines.ray import RayEngine
    except ImportError as error:
        raise MissingDependencyError(
            "engine ray: Ray is not installed: install the extra ray, in a clone with "
            "pip install -c constraints.txt '.[ray]'"
        ) from error
    return RayEngine(workers, threads, device)


def check_engine(engine: Engine) -> Engine:
    """The same engine. Raises TypeError for what has not the methods of one."""
    if not all(callable(getattr(engine, method, None)) for method in ("encode", "decode", "verify")):
        raise TypeError(f"engine: give {' or '.join(map(repr, ENGINES))}, or a RayEngine, not {type(engine).__name__}")
    return engine


@contextmanager
def opened(
    engine: "str | Engine", workers: int | None = None, threads: int | None = None, device: str = "auto"
) -> Iterator[tuple[Engine, str]]:
    """An engine, and the device for the LM in this process. An engine given by its name is closed at the end.

    Raises as `find_engine` and `check_engine`.
    """
    if not isinstance(engine, str):
        yield check_engine(engine), device
        return
    started = find_engine(engine, workers, threads, device)
    try:
        yield started, device if engine == "local" else "cpu"
    finally:
        started.close()
