"""Ray: groups of large documents, encoded, decoded and verified by the workers of a cluster."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from threading import Lock
from typing import Any

import numpy as np
import ray

import memcodec
from memcodec.coding.corrections import EncodedGroup
from memcodec.errors import EncodeError, EngineError, MemcodecError, wrong_file
from memcodec.groups import FIT_CHUNKS, batches, decode_all, encode_groups, verify_all
from memcodec.lm.model import ExactLM
from memcodec.lm.weight_cache import AnyWeights
from memcodec.memory.site import Site
from memcodec.memory.sites import site_of
from memcodec.models import registry
from memcodec.models.loaded import LoadedModel
from memcodec.progress import Reporter
from memcodec.settings import MAX_THREADS, Prompt, SiteSettings, check_whole

_TASK_TOKENS = 3200  # of the groups that are one task of encoding: a few seconds on a CPU
_MIN_GROUPS = 8  # of a task of decoding: with fewer rows the processor waits for memory
_TASKS_AHEAD = 4  # finished tasks for each worker that may wait for an earlier one
_TRIES = 4  # for a task whose worker is lost, and for a worker that does not start
_WEIGHTS_KEPT = 2  # models whose weights Ray keeps
_MODELS_KEPT = 4  # models that a worker keeps, and twice as many with their primers
_DEVICES = ("auto", "cpu", "cuda")

_Key = tuple[bytes, bytes]  # identity of the model, tokens of the primer


class RayEngine:
    """Workers on a Ray cluster, each with its own copy of the model: `codec.with_engine(RayEngine())`.

    The workers start with the first document and stay until `close`; several threads may use them. Ray restarts a
    worker that is lost, and another one does its task.
    """

    def __init__(
        self, workers: int | None = None, threads: int | None = None, device: str = "auto", address: str | None = None,
        start_timeout: float = 600.0,
    ) -> None:  # fmt: skip
        """workers: by default as many as the cluster has room for now. threads: CPU threads of each, by default 1.

        device: "cuda" for a GPU for each; "cpu"; "auto" for GPUs if the cluster has any. address: as for `ray.init`,
        which looks for a cluster, and starts one on this machine if there is none; an engine that connected to it
        disconnects when it is closed. start_timeout: seconds to wait for the first worker. Raises EncodeError.
        """
        if workers is not None:
            check_whole("workers", workers, 1, None, "1 or more")
        if threads is not None:
            check_whole("threads", threads, 1, MAX_THREADS, f"1 to {MAX_THREADS}")
        if device not in _DEVICES:
            raise EncodeError(f"device {device!r}: give {', '.join(_DEVICES)}")
        self._count = workers
        self._threads = threads or 1
        self._device = device
        self._address = address
        self._start_timeout = start_timeout
        self._connected = False
        self._pool: list[Any] = []
        self._weights: dict[bytes, Any] = {}  # by identity; as long as they are here, Ray keeps them for new workers
        self._lock = Lock()

    def encode(
        self,
        model: LoadedModel,
        site: SiteSettings,
        groups: Iterable[list[np.ndarray]],
        context: int,
        report: Reporter,
    ) -> Iterator[EncodedGroup]:
        """Encode groups, several in each task (see `Engine`). Raises EngineError, EncodeError."""

        def done(encoded: list[EncodedGroup]) -> None:
            report.finish([n for group in encoded for n in group.lengths])

        split = _fitted_together(groups) if isinstance(site, Prompt) else _split(groups)
        for encoded in self._run(model, "encode", ((some, site, context) for some in split), done):
            yield from encoded

    def decode(
        self, model: LoadedModel, site: Site, groups: list[EncodedGroup], context: int,
        batch: int | None, report: Reporter,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Decode groups, a batch in each task, smaller ones if there are more workers. Raises FormatError."""
        size = max(_MIN_GROUPS, -(-len(groups) // max(1, len(self.workers()))))
        split = batches(model.lm, site, groups, context, min(batch or model.lm.capacity.sequences, size))

        def done(decoded: list[np.ndarray]) -> None:
            report.finish([len(tokens) for tokens in decoded])

        for decoded in self._run(model, "decode", ((some, site, context, batch) for some in split), done):
            yield from decoded

    def verify(
        self,
        model: LoadedModel,
        site: Site,
        groups: list[EncodedGroup],
        known: Iterable[list[np.ndarray]],
        context: int,
        report: Reporter,
    ) -> Iterator[np.ndarray]:
        """Decode groups whose chunks are known, several in each task. Raises MachineError, FormatError."""
        waiting = iter(groups)

        def done(decoded: list[np.ndarray]) -> None:
            report.finish([len(tokens) for tokens in decoded])

        tasks = ((list(islice(waiting, len(some))), some, site, context) for some in _split(known))
        for decoded in self._run(model, "verify", tasks, done):
            yield from decoded
        if next(waiting, None) is not None:  # as if the document had become shorter
            raise wrong_file("the encoded file has other chunks than its document")

    def close(self) -> None:
        """Stop the workers, and disconnect from the cluster if this engine connected to it."""
        with self._lock:
            pool, self._pool, self._weights = self._pool, [], {}
            connected, self._connected = self._connected, False
            if ray.is_initialized():
                for worker in pool:
                    with suppress(Exception):  # the worker is gone already
                        ray.kill(worker)
                if connected:
                    ray.shutdown()

    def __reduce__(self) -> tuple[Any, ...]:
        """Its settings: where it is unpickled, it starts workers of its own."""
        return RayEngine, (self._count, self._threads, self._device, self._address, self._start_timeout)

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- the workers

    def workers(self) -> list[Any]:
        """Ray's handles of the workers, started when they are first needed. Raises EncodeError, EngineError."""
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
        """The number of workers, and of GPUs for each. Raises EncodeError if the cluster has no room for them."""
        if not ray.is_initialized():
            self._connect()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
        gpus = int(self._device == "cuda" or (self._device == "auto" and has_gpus))

        def room_in(resources: dict[str, float]) -> int:
            room = int(resources.get("CPU", 0) // self._threads)
            return min(room, int(resources.get("GPU", 0))) if gpus else room

        if (room := sum(map(room_in, nodes))) < (self._count or 1):
            each = f"{self._threads} CPUs" + (" and a GPU" if gpus else "")
            raise EncodeError(
                f"engine ray: the cluster has room for {room} workers of {each} each: give fewer workers or threads"
            )
        return self._count or max(1, min(room, room_in(ray.available_resources()))), gpus

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # ConnectionError, RuntimeError, ValueError, and plain Exception
            raise EngineError(f"engine ray: no cluster: {_last_line(error)}") from error
        finally:
            with suppress(ValueError, TypeError):  # not the main thread, or not set from Python
                signal.signal(signal.SIGTERM, before)  # Ray sets its own handler
        self._connected = True

    def _shared(self, model: LoadedModel) -> "tuple[Any, _Model]":
        """Ray's reference to the weights of a model, and a description. Raises EngineError if its folder changed."""
        with self._lock:
            if model.identity not in self._weights:
                weights, _ = registry.load_exact(model.folder)
                if weights.identity != model.identity:
                    raise EngineError(
                        f"engine ray: {model.folder.path}: the model has changed since it was loaded: load it again"
                    )
                while len(self._weights) >= _WEIGHTS_KEPT:
                    del self._weights[next(iter(self._weights))]
                self._weights[model.identity] = ray.put(weights)  # once per machine, not per worker
            return self._weights[model.identity], _Model(model.identity, model.folder, model.primer_tokens)

    def _run(
        self, model: LoadedModel, method: str, tasks: Iterator[tuple[Any, ...]], done: Callable[[Any], None]
    ) -> Iterator[Any]:
        """The results of tasks, in their order. Raises what a worker raises.

        method: of `_Worker`; tasks: its arguments; done: is called with each result as soon as it arrives.
        """
        pool = self.workers()
        weights, described = self._shared(model)
        running: dict[Any, tuple[Any, _Task | None]] = {}  # by Ray's reference; no task: the worker is starting
        for worker in pool:
            running[_ask(worker)] = worker, None
        again: deque[_Task] = deque()  # tasks whose worker was lost
        results: dict[int, Any] = {}  # by the number of the task, until they are returned
        started = returned = 0
        exhausted = False
        idle: list[Any] = []
        try:
            while True:
                while returned in results:
                    yield results.pop(returned)
                    returned += 1
                while idle and (again or (not exhausted and started < returned + _TASKS_AHEAD * len(pool))):
                    if again:
                        task = again.popleft()
                    elif (arguments := next(tasks, None)) is None:
                        exhausted = True
                        break
                    else:
                        task, started = _Task(started, arguments), started + 1
                    worker = idle.pop()
                    running[getattr(worker, method).remote(weights, described, *task.arguments)] = worker, task
                if exhausted and returned == started:
                    return
                worker, finished, result = self._next(running)
                if isinstance(result, ray.exceptions.RayError):
                    self._lost(pool, worker, finished, result)
                    if finished is not None:
                        again.append(finished)
                        running[_ask(worker)] = worker, None
                    continue
                if finished is not None:
                    results[finished.number] = result
                    done(result)
                elif result != memcodec.__version__:
                    raise EngineError(f"engine ray: a worker has memcodec {result}, not {memcodec.__version__}")
                idle.append(worker)
        finally:
            for worker in [worker for worker, task in running.values() if task is not None]:
                with suppress(Exception):  # nobody waits for its result
                    ray.kill(worker, no_restart=False)

    def _lost(self, pool: list[Any], worker: Any, task: "_Task | None", error: Exception) -> None:
        """Note that a worker did not start, or was lost with its task. Raises EngineError if that is final."""
        if task is None:
            pool.remove(worker)
            if not pool:
                raise self._no_worker(f": {_last_line(error)}") from error
            return
        task.lost += 1
        if task.lost == _TRIES:
            raise EngineError(f"engine ray: {_TRIES} workers were lost at the same groups") from error

    def _next(self, running: "dict[Any, tuple[Any, _Task | None]]") -> "tuple[Any, _Task | None, Any]":
        """The next worker to finish, its task, and the result or Ray's error."""
        started = any(task is not None for _, task in running.values())
        ready, _ = ray.wait(list(running), timeout=None if started else self._start_timeout)
        if not ready:
            raise self._no_worker(f" in {self._start_timeout:g} s: its CPUs or GPUs are in use")
        worker, task = running.pop(ready[0])
        try:
            return worker, task, ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, MemcodecError):
                raise error.cause from None
            raise EngineError(f"engine ray: a worker failed: {_last_line(error)}") from error
        except ray.exceptions.RayError as error:
            return worker, task, error

    def _no_worker(self, why: str) -> EngineError:
        with self._lock:
            pool, self._pool = self._pool, []
        for worker in pool:
            with suppress(Exception):
                ray.kill(worker)
        return EngineError(f"engine ray: no worker starts{why}")


@dataclass(frozen=True)
class _Model:
    """The model of a task: its identity, its folder, and the tokens of its primer, int64 [tokens]."""

    identity: bytes
    folder: registry.ModelFolder
    primer_tokens: np.ndarray

    @property
    def key(self) -> _Key:
        """The key under which a worker keeps it."""
        return self.identity, self.primer_tokens.tobytes()


@dataclass
class _Task:
    number: int
    arguments: tuple[Any, ...]
    lost: int = 0  # workers that were lost with it


def _split(groups: Iterable[list[np.ndarray]]) -> Iterator[list[list[np.ndarray]]]:
    """Groups in lists of about _TASK_TOKENS tokens."""
    task: list[list[np.ndarray]] = []
    tokens = 0
    for group in groups:
        task.append(group)
        tokens += sum(map(len, group))
        if tokens >= _TASK_TOKENS:
            yield task
            task, tokens = [], 0
    if task:
        yield task


def _fitted_together(groups: Iterable[list[np.ndarray]]) -> Iterator[list[list[np.ndarray]]]:
    """Groups as one process fits them: at the prompt site, a fit depends on the others in its batch."""
    waiting = iter(groups)
    return iter(lambda: list(islice(waiting, FIT_CHUNKS)), [])


def _ask(worker: Any) -> Any:
    """Ray's reference to an answer of a worker, which arrives once Ray has started (or restarted) it."""
    return worker.version.options(max_task_retries=_TRIES).remote()


def _last_line(error: BaseException) -> str:
    """The last line of an error's text, which Ray puts after the traceback of the worker."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Worker:
    """A process of the cluster, with the models that it has loaded."""

    def __init__(self, device: str, threads: int) -> None:
        self._device = device
        self._threads = threads
        self._lms: dict[_Key, ExactLM] = {}
        self._floats: dict[_Key, Any] = {}

    def version(self) -> str:
        """The version of memcodec in this process."""
        return memcodec.__version__

    def encode(
        self, weights: AnyWeights, model: _Model, groups: list[list[np.ndarray]], site: SiteSettings, context: int
    ) -> list[EncodedGroup]:
        """Encode the groups of a task."""
        lm = self._lm(weights, model)
        return list(encode_groups(lm, site_of(lm, site, lambda: self._load_floats(lm, model)), groups, context))

    def decode(
        self,
        weights: AnyWeights,
        model: _Model,
        groups: list[EncodedGroup],
        site: Site,
        context: int,
        batch: int | None,
    ) -> list[np.ndarray]:
        """Decode the groups of a task."""
        return list(decode_all(self._lm(weights, model), site, groups, context, batch, Reporter(None, "decode")))

    def verify(
        self, weights: AnyWeights, model: _Model, groups: list[EncodedGroup], known: list[list[np.ndarray]],
        site: Site, context: int,
    ) -> list[np.ndarray]:  # fmt: skip
        """Decode the groups of a task, whose chunks are known."""
        lm = self._lm(weights, model)
        return list(verify_all(lm, site, groups, known, context, Reporter(None, "verify")))

    def _lm(self, weights: AnyWeights, model: _Model) -> ExactLM:
        """The exact LM of a model, made from the weights when it is first needed. Raises EngineError."""
        plain = model.identity, b""
        if plain not in self._lms:
            copies = {name: np.array(tensor) for name, tensor in weights.tensors.items()}  # Ray's are read-only
            weights = replace(weights, tensors=copies)
            if weights.plain().identity != model.identity:
                raise EngineError("engine ray: a worker computes another identity of the model: install one version")
            if len(self._lms) >= _MODELS_KEPT:
                self._lms.clear()
                self._floats.clear()
            self._lms[plain] = ExactLM(weights, self._device, self._threads)
        if model.key not in self._lms:
            if len(self._lms) >= 2 * _MODELS_KEPT:  # with many primers: the model itself stays
                self._lms = {plain: self._lms[plain]}
            self._lms[model.key] = self._lms[plain].with_prefix(model.primer_tokens)
        return self._lms[model.key]

    def _load_floats(self, lm: ExactLM, model: _Model) -> Any:
        """The LM in floating point, from the same folder, or from this machine's copy of a built-in model."""
        if model.key not in self._floats:
            from memcodec.models.floats import FrozenLM

            path = registry.pull(model.folder.id) if model.folder.id in registry.BUILT_IN else model.folder.path
            self._floats[model.key] = FrozenLM.load(path, lm.prefix.tolist(), self._device)
        return self._floats[model.key]
