"""Ray: groups of large documents coded by the workers of a cluster."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

import memcodec
from memcodec.errors import EncodeError, EngineError, MachineError, MemcodecError
from memcodec.groups import FIT_CHUNKS, EncodedGroup, batches, decode_all, encode_groups
from memcodec.lm.model import ExactLM
from memcodec.lm.weights import ExactWeights
from memcodec.memory.site import Site
from memcodec.memory.sites import site_of
from memcodec.models import registry
from memcodec.progress import Reporter
from memcodec.settings import Prompt, Readout

if TYPE_CHECKING:
    from memcodec.codec import Codec

_LOT = 3200  # tokens that a worker encodes at one time, or one group: some seconds on a CPU
_LEAST = 8  # groups that one decodes at one time, at least: fewer rows leave the processor waiting for memory
_AHEAD = 4  # lots a worker that may wait for one before them
_TRIES = 4  # of a lot whose worker is lost, and of a worker that does not start
_MODELS = 2  # whose weights Ray keeps
_KEPT = 4  # models, behind this primer or that, that a worker keeps


class RayEngine:
    """Workers on a Ray cluster, each with its own model: `codec.with_engine(RayEngine())`.

    They start with the first document and serve those that follow, from several threads too, until `close`. One lost
    is started again by Ray, and what it was at goes to another.
    """

    def __init__(
        self, workers: int | None = None, threads: int | None = None, device: str = "auto", address: str | None = None,
        patience: float = 600.0,
    ) -> None:  # fmt: skip
        """workers: by default as many as there is room for now; more wait for it. threads: CPU threads of each, or 1.

        device: "cuda", a GPU each; "cpu"; "auto", GPUs where the cluster has some. address: as of `ray.init`, which
        looks for a cluster, and starts one on this machine where there is none; an engine that connects disconnects
        when it is closed. patience: seconds to wait for a first worker. Raises EncodeError.
        """
        if workers is not None and workers < 1:
            raise EncodeError(f"workers {workers}: give 1 or more")
        if threads is not None and not 1 <= threads <= 1024:
            raise EncodeError(f"threads {threads}: give 1 to 1024")
        if device not in ("auto", "cpu", "cuda"):
            raise EncodeError(f"device {device!r}: give auto, cpu or cuda")
        self._count = workers
        self._threads = threads or 1
        self._device = device
        self._address = address
        self._patience = patience
        self._connected = False
        self._pool: list[Any] = []
        self._weights: dict[bytes, Any] = {}  # by identity: kept here, so that Ray keeps them for workers to come
        self._lock = Lock()

    def encode(
        self, codec: "Codec", site: Readout | Prompt, groups: Iterable[list[np.ndarray]], context: int, report: Reporter
    ) -> Iterator[EncodedGroup]:
        """Groups in lots, one a worker. Raises EngineError, EncodeError."""

        def done(lot: list[EncodedGroup]) -> None:
            report.finish([n for coded in lot for n in coded.lengths])

        lots = _fits(groups) if isinstance(site, Prompt) else _lots(groups)
        for made in self._run(codec, "encode", ((lot, site, context) for lot in lots), done):
            yield from made

    def decode(
        self, codec: "Codec", site: Site, groups: list[EncodedGroup], context: int, batch: int, report: Reporter
    ) -> Iterator[np.ndarray]:
        """Groups in batches, one a worker: smaller ones where there are more workers. Raises FormatError."""
        size = max(_LEAST, -(-len(groups) // max(1, len(self.workers()))))
        lots = batches(codec.lm, site, groups, context, min(batch, size))

        def done(lot: list[np.ndarray]) -> None:
            report.finish([len(tokens) for tokens in lot])

        for found in self._run(codec, "decode", ((lot, site, context, batch) for lot in lots), done):
            yield from found

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them."""
        with self._lock:
            pool, self._pool, self._weights = self._pool, [], {}
            connected, self._connected = self._connected, False
            if ray.is_initialized():
                for worker in pool:
                    with suppress(Exception):  # one that is gone
                        ray.kill(worker)
                if connected:
                    ray.shutdown()

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- the workers

    def workers(self) -> list[Any]:
        """Ray's handles of the workers, which start when they are first needed. Raises EncodeError, EngineError."""
        with self._lock:
            if not self._pool:
                count, gpus = self._room()
                start = ray.remote(_Worker).options(
                    num_cpus=self._threads, num_gpus=gpus, max_restarts=-1, max_task_retries=0
                )  # fmt: skip
                device = "cuda" if gpus else "cpu"
                self._pool = [start.remote(device, self._threads) for _ in range(count)]
            return list(self._pool)

    def _room(self) -> tuple[int, int]:
        """How many workers, and how many GPUs for each. Raises EncodeError where there is no room for them."""
        if not ray.is_initialized():
            self._connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        some = any(node.get("GPU", 0) >= 1 for node in nodes)
        gpus = int(self._device == "cuda" or (self._device == "auto" and some))

        def room_in(resources: dict[str, float]) -> int:
            room = int(resources.get("CPU", 0) // self._threads)
            return min(room, int(resources.get("GPU", 0))) if gpus else room

        if (room := sum(map(room_in, nodes))) < (self._count or 1):
            each = f"{self._threads} CPUs" + (" and a GPU" if gpus else "")
            raise EncodeError(
                f"engine ray: the cluster has room for {room} workers of {each} each: give fewer, or less"
            )
        return self._count or max(1, min(room, room_in(ray.available_resources()))), gpus

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # ConnectionError, RuntimeError, ValueError, and plain ones
            raise EngineError(f"engine ray: no cluster: {_line(error)}") from error
        finally:
            with suppress(ValueError, TypeError):  # not the main thread, or not set from Python
                signal.signal(signal.SIGTERM, before)  # Ray sets one of its own
        self._connected = True

    def _model(self, codec: "Codec") -> "tuple[Any, _Model]":
        """Ray's reference to a codec's weights, and which they are. Raises EngineError where its folder changed."""
        identity = codec.lm.identity
        with self._lock:
            if identity not in self._weights:
                kept, _ = registry.load_exact(codec.folder)
                if kept.identity != identity:
                    raise EngineError(
                        f"engine ray: {codec.folder.path}: the model has changed since it was loaded: load it again"
                    )
                while len(self._weights) >= _MODELS:
                    del self._weights[next(iter(self._weights))]
                self._weights[identity] = ray.put(kept)  # once a machine, whatever the number of its workers
            weights = self._weights[identity]
        primer = codec.primer
        behind = (primer.identity, primer.tokens) if primer else (b"", np.empty(0, dtype=np.int64))
        return weights, _Model(identity, codec.folder, *behind)

    def _run(
        self, codec: "Codec", method: str, tasks: Iterator[tuple[Any, ...]], done: Callable[[Any], None]
    ) -> Iterator[Any]:
        """Results in the order of their tasks; done: is called with each as it comes. Raises what a worker raises."""
        pool = self.workers()
        weights, model = self._model(codec)
        running: dict[Any, tuple[Any, _Task | None]] = {}  # by what will be there; None: only whether it is ready
        for worker in pool:
            running[_ask(worker)] = worker, None
        again: deque[_Task] = deque()
        results: dict[int, Any] = {}
        taken = given = 0
        ended = False  # no more tasks will come
        idle: list[Any] = []
        try:
            while True:
                while given in results:
                    yield results.pop(given)
                    given += 1
                while idle and (again or (not ended and taken < given + _AHEAD * len(pool))):
                    if again:
                        task = again.popleft()
                    elif (arguments := next(tasks, None)) is None:
                        ended = True
                        break
                    else:
                        task, taken = _Task(taken, arguments), taken + 1
                    worker = idle.pop()
                    running[getattr(worker, method).remote(weights, model, *task.arguments)] = worker, task
                if ended and given == taken:
                    return
                worker, own, found = self._next(running)
                if isinstance(found, ray.exceptions.RayError):
                    if own is None:
                        pool.remove(worker)
                        if not pool:
                            raise self._nobody(f": {_line(found)}") from found
                        continue
                    own.lost += 1
                    if own.lost == _TRIES:
                        raise EngineError(f"engine ray: {_TRIES} workers were lost at the same groups") from found
                    again.append(own)
                    running[_ask(worker)] = worker, None
                    continue
                if own is not None:
                    results[own.number] = found
                    done(found)
                elif found != memcodec.__version__:
                    raise EngineError(f"engine ray: a worker has memcodec {found}, not {memcodec.__version__}")
                idle.append(worker)
        finally:
            for worker in [worker for worker, own in running.values() if own is not None]:
                with suppress(Exception):  # what it is at is for nothing
                    ray.kill(worker, no_restart=False)

    def _next(self, running: "dict[Any, tuple[Any, _Task | None]]") -> "tuple[Any, _Task | None, Any]":
        """A worker that has ended something, with its task, and what came of it, an error of Ray's perhaps."""
        started = any(own is not None for _, own in running.values())
        ready, _ = ray.wait(list(running), timeout=None if started else self._patience)
        if not ready:
            raise self._nobody(f" in {self._patience:g} s: its CPUs, or GPUs, are taken by others")
        worker, own = running.pop(ready[0])
        try:
            return worker, own, ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MemcodecError):
                raise error.cause from None
            raise EngineError(f"engine ray: a worker failed: {_line(error)}") from error
        except ray.exceptions.RayError as error:
            return worker, own, error

    def _nobody(self, why: str) -> EngineError:
        with self._lock:
            pool, self._pool = self._pool, []
        for worker in pool:
            with suppress(Exception):
                ray.kill(worker)
        return EngineError(f"engine ray: no worker starts{why}")


@dataclass(frozen=True)
class _Model:
    """Which model a task is for, and behind which primer, int64 [tokens]."""

    identity: bytes
    folder: registry.ModelFolder
    primer: bytes
    primer_tokens: np.ndarray


@dataclass
class _Task:
    number: int
    arguments: tuple[Any, ...]
    lost: int = 0


def _lots(groups: Iterable[list[np.ndarray]]) -> Iterator[list[list[np.ndarray]]]:
    lot: list[list[np.ndarray]] = []
    tokens = 0
    for group in groups:
        lot.append(group)
        tokens += sum(map(len, group))
        if tokens >= _LOT:
            yield lot
            lot, tokens = [], 0
    if lot:
        yield lot


def _fits(groups: Iterable[list[np.ndarray]]) -> Iterator[list[list[np.ndarray]]]:
    """As they are fitted together in one process: fits of the prompt site depend on those beside them."""
    waiting = iter(groups)
    return iter(lambda: list(islice(waiting, FIT_CHUNKS)), [])


def _ask(worker: Any) -> Any:
    """Whether a worker is there, as soon as Ray has started it, or started it again."""
    return worker.version.options(max_task_retries=_TRIES).remote()


def _line(error: BaseException) -> str:
    """The last line of an error that says something: Ray's have a traceback of the other side before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Worker:
    """Models in a process of its own."""

    def __init__(self, device: str, threads: int) -> None:
        self._device = device
        self._threads = threads
        self._lms: dict[tuple[bytes, bytes], ExactLM] = {}  # by identities of model and primer
        self._floats: dict[tuple[bytes, bytes], Any] = {}

    def version(self) -> str:
        """Of memcodec, here."""
        return memcodec.__version__

    def encode(
        self, weights: ExactWeights, model: _Model, groups: list[list[np.ndarray]], site: Readout | Prompt, context: int
    ) -> list[EncodedGroup]:
        """A lot."""
        lm = self._lm(weights, model)
        return list(encode_groups(lm, site_of(lm, site, lambda: self._load_floats(lm, model)), groups, context))

    def decode(
        self, weights: ExactWeights, model: _Model, groups: list[EncodedGroup], site: Site, context: int, batch: int
    ) -> list[np.ndarray]:
        """A batch."""
        lm = self._lm(weights, model)
        return list(decode_all(lm, site, groups, context, batch, Reporter(None, "decode", 0, 0, 1)))

    def _lm(self, weights: ExactWeights, model: _Model) -> ExactLM:
        """The exact LM, made of the weights when it is first asked for. Raises MachineError."""
        plain = model.identity, b""
        if plain not in self._lms:
            own = {name: np.array(tensor) for name, tensor in weights.tensors.items()}  # Ray's are read-only
            kept = ExactWeights(weights.architecture, own, weights.prefix, weights.tokenizer)
            if kept.identity != model.identity:
                raise MachineError("engine ray: a worker makes another model of the same weights: install one version")
            if len(self._lms) >= _KEPT:
                self._lms.clear()
                self._floats.clear()
            self._lms[plain] = ExactLM(kept, self._device, self._threads)
        key = model.identity, model.primer
        if key not in self._lms:
            if len(self._lms) >= 2 * _KEPT:  # primers: the model stays
                self._lms = {plain: self._lms[plain]}
            self._lms[key] = self._lms[plain].behind(model.primer_tokens)
        return self._lms[key]

    def _load_floats(self, lm: ExactLM, model: _Model) -> Any:
        """The LM in floating point: from the same folder, or of the built-in model, which each machine has."""
        key = model.identity, model.primer
        if key not in self._floats:
            from memcodec.models.floats import FrozenLM

            path = registry.pull(model.folder.id) if model.folder.id in registry.BUILT_IN else model.folder.path
            self._floats[key] = FrozenLM.load(path, lm.prefix.tolist(), self._device)
        return self._floats[key]
