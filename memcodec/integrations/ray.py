"""Ray: groups of large documents coded by the workers of a cluster, and columns of Ray Data as columns of frames."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

import memcodec
from memcodec import chunks, models
from memcodec.chunks import FIT_CHUNKS, Coded
from memcodec.errors import EncodeError, MachineError
from memcodec.integrations.tables import Column, decode_table, encode_table
from memcodec.lm.model import ExactLM
from memcodec.lm.weights import ExactWeights
from memcodec.memory import Site, site_of
from memcodec.memory.settings import Prompt, Readout
from memcodec.progress import Reporter

if TYPE_CHECKING:
    import pyarrow

    from memcodec.codec import Codec

_LOT = 8  # groups that a worker encodes at one time: some seconds on a CPU
_LEAST = 8  # groups that one decodes at one time, at least: fewer rows leave the processor waiting for memory
_AHEAD = 4  # lots a worker that may wait for one before them
_TRIES = 4  # of a lot whose worker is lost


class RayEngine:
    """Workers on a Ray cluster, each with its own model: `Codec.load(engine=RayEngine())`.

    They start with the first document and serve those that follow until `close`. One lost is started again by Ray, and
    what it was at goes to another.
    """

    def __init__(
        self, workers: int | None = None, threads: int | None = None, device: str = "auto", address: str | None = None
    ) -> None:
        """workers: by default as many as there is room for now; more wait for it. threads: CPU threads of each, or 1.

        device: "cuda", a GPU each; "cpu"; "auto", GPUs where the cluster has some. address: as of `ray.init`, which
        looks for a cluster, and starts one on this machine where there is none; one that is connected to stays. Raises
        EncodeError.
        """
        if workers is not None and workers < 1:
            raise EncodeError(f"workers {workers}: give 1 or more")
        if threads is not None and not 1 <= threads <= 1024:
            raise EncodeError(f"threads {threads}: give 1 to 1024")
        if device not in ("auto", "cpu", "cuda"):
            raise EncodeError(f"device {device!r}: give auto, cpu or cuda")
        self._workers = workers
        self._threads = threads or 1
        self._device = device
        self._address = address
        self._connected = False
        self._weights: Any = None  # kept here, so that Ray keeps them for workers that start again
        self._pool: list[Any] = []
        self._serves: tuple[bytes, bytes] | None = None  # the model and primer of the pool

    def encode(
        self, codec: "Codec", site: Readout | Prompt, groups: Iterable[list[np.ndarray]], context: int, report: Reporter
    ) -> Iterator[Coded]:
        """Groups in lots, one a worker. Raises MachineError, EncodeError."""
        waiting = iter(groups)
        size = FIT_CHUNKS if isinstance(site, Prompt) else _LOT  # fits of the prompt site depend on those beside them
        lots = iter(lambda: list(islice(waiting, size)), [])

        def done(lot: list[Coded]) -> None:
            report.finish([n for coded in lot for n in coded.lengths])

        for made in self._run(codec, "encode", ((lot, site, context) for lot in lots), done):
            yield from made

    def decode(
        self, codec: "Codec", site: Site, groups: list[Coded], context: int, batch: int, report: Reporter
    ) -> Iterator[np.ndarray]:
        """Groups in batches, one a worker: smaller ones where there are more workers. Raises FormatError."""
        size = max(_LEAST, -(-len(groups) // max(1, len(self.workers(codec)))))
        lots = chunks.batches(codec.lm, site, groups, context, min(batch, size))

        def done(lot: list[np.ndarray]) -> None:
            report.finish([len(tokens) for tokens in lot])

        for found in self._run(codec, "decode", ((lot, site, context, batch) for lot in lots), done):
            yield from found

    def close(self) -> None:
        """End the workers, and the cluster if it was started for them."""
        for worker in self._pool:
            ray.kill(worker)
        self._pool, self._serves, self._weights = [], None, None
        if self._connected:
            ray.shutdown()
            self._connected = False

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- the workers

    def workers(self, codec: "Codec") -> list[Any]:
        """Ray's handles of those with the model and primer of a codec, started when they are first needed.

        Raises EncodeError, MachineError.
        """
        primer = codec.primer.identity if codec.primer else b""
        if self._serves == (codec.lm.identity, primer):
            return self._pool
        for worker in self._pool:
            ray.kill(worker)
        count, gpus = self._room()
        kept, _ = models.load_exact(codec.folder)
        self._weights = ray.put(kept)  # once a machine, whatever the number of its workers
        start = ray.remote(_Worker).options(
            num_cpus=self._threads, num_gpus=gpus, max_restarts=-1, max_task_retries=0
        )  # fmt: skip
        tokens = codec.primer.tokens if codec.primer else None
        folder = codec.folder
        device = "cuda" if gpus else "cpu"
        self._pool = [start.remote(tokens, folder, device, self._threads) for _ in range(count)]
        self._serves = codec.lm.identity, primer
        return self._pool

    def _room(self) -> tuple[int, int]:
        """How many workers, and how many GPUs for each. Raises EncodeError where there is no room for them."""
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise MachineError(f"engine ray: no cluster: {_line(error)}") from error
            self._connected = True
        whole = ray.cluster_resources()
        gpus = int(self._device == "cuda" or (self._device == "auto" and whole.get("GPU", 0) >= 1))

        def room_in(resources: dict[str, float]) -> int:
            room = int(resources.get("CPU", 0) // self._threads)
            return min(room, int(resources.get("GPU", 0))) if gpus else room

        if (room := room_in(whole)) < (self._workers or 1):
            each = f"{self._threads} CPUs" + (" and a GPU" if gpus else "")
            raise EncodeError(
                f"engine ray: the cluster has room for {room} workers of {each} each: give fewer, or --threads 1"
            )
        return self._workers or max(1, room_in(ray.available_resources())), gpus

    def _run(
        self, codec: "Codec", method: str, tasks: Iterator[tuple[Any, ...]], done: Callable[[Any], None]
    ) -> Iterator[Any]:
        """Results in the order of their tasks; done: is called with each as it comes. Raises what a worker raises."""
        running: dict[Any, tuple[Any, _Task | None]] = {}  # by what will be there; None: only whether it is ready
        for worker in self.workers(codec):
            running[self._ask(worker)] = worker, None
        again: deque[_Task] = deque()
        results: dict[int, Any] = {}
        taken = given = 0
        ended = False  # no more tasks will come
        idle: list[Any] = []
        while True:
            while given in results:
                yield results.pop(given)
                given += 1
            if ended and given == taken:
                return
            while idle and (again or (not ended and taken < given + _AHEAD * len(self._pool))):
                if again:
                    task = again.popleft()
                elif (arguments := next(tasks, None)) is None:
                    ended = True
                    break
                else:
                    task, taken = _Task(taken, arguments), taken + 1
                worker = idle.pop()
                running[getattr(worker, method).remote(*task.arguments)] = worker, task
            if not running:
                continue  # all is done
            (ready, *_), _ = ray.wait(list(running))
            worker, own = running.pop(ready)
            try:
                found = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else MachineError(_line(error)) from None
            except ray.exceptions.RayError as error:
                if own is None:
                    self._pool.remove(worker)
                    if not self._pool:
                        self._serves = None
                        raise MachineError(f"engine ray: no worker starts: {_line(error)}") from error
                    continue
                own.lost += 1
                if own.lost == _TRIES:
                    raise MachineError(f"engine ray: {_TRIES} workers were lost at the same groups") from error
                again.append(own)
                running[self._ask(worker)] = worker, None
                continue
            if own is None:
                if found != memcodec.__version__:
                    raise MachineError(f"engine ray: a worker has memcodec {found}, not {memcodec.__version__}")
            else:
                results[own.number] = found
                done(found)
            idle.append(worker)

    def _ask(self, worker: Any) -> Any:
        """Whether a worker is there, as soon as Ray has started it, or started it again, and it has its model."""
        return worker.ready.options(max_task_retries=-1).remote(self._weights)


@dataclass
class _Task:
    number: int
    arguments: tuple[Any, ...]
    lost: int = 0


def _line(error: BaseException) -> str:
    """The last line of an error that says something: Ray's have a traceback of the other side before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Worker:
    """A model in a process of its own."""

    def __init__(self, primer: np.ndarray | None, folder: models.ModelFolder, device: str, threads: int) -> None:
        self._primer = primer
        self._folder = folder
        self._device = device
        self._threads = threads
        self._lm: Any = None
        self._floats: Any = None

    def ready(self, weights: ExactWeights) -> str:
        """Make the model, if it is not there yet; gives the version of memcodec here."""
        if self._lm is None:
            own = {name: np.array(tensor) for name, tensor in weights.tensors.items()}  # Ray's are read-only
            kept = ExactWeights(weights.architecture, own, weights.prefix, weights.tokenizer)
            lm = ExactLM(kept, self._device, self._threads)
            self._lm = lm if self._primer is None else lm.behind(self._primer)
        return memcodec.__version__

    def encode(self, groups: list[list[np.ndarray]], site: Readout | Prompt, context: int) -> list[Coded]:
        """A lot."""
        return list(chunks.encode(self._lm, site_of(self._lm, site, self._load_floats), groups, context))

    def decode(self, groups: list[Coded], site: Site, context: int, batch: int) -> list[np.ndarray]:
        """A batch."""
        return list(chunks.decode_all(self._lm, site, groups, context, batch, Reporter(None, "decode", 0, 0, 1)))

    def _load_floats(self) -> Any:
        """The LM in floating point: from the same folder, or of the built-in model, which each machine has."""
        if self._floats is None:
            from memcodec.lm.floats import FrozenLM

            path = self._folder.path
            if self._folder.id in models.BUILT_IN:
                path = models.pull(self._folder.id)
            self._floats = FrozenLM.load(path, self._lm.prefix.tolist(), self._device)
        return self._floats


# ---- Ray Data


def encode_column(
    dataset: Any, name: str, column: Column, *, workers: int = 1, threads: int = 1, gpu: bool = False
) -> Any:
    """A Ray dataset whose column of text is one of frames, when it is run; a file of Parquet keeps what it needs.

    workers: processes, each with a model; threads: CPU threads of each; gpu: one for each.
    """
    return _map(dataset, _ColumnWorker, (name, column.model, threads, gpu, column), workers, threads, gpu)


def decode_column(
    dataset: Any, name: str, model: str = models.DEFAULT_MODEL, *, workers: int = 1, threads: int = 1, gpu: bool = False
) -> Any:
    """The same dataset with the column of text. model: by name, or a directory that every machine has."""
    return _map(dataset, _ColumnWorker, (name, model, threads, gpu, None), workers, threads, gpu)


def _map(dataset: Any, kind: type, arguments: tuple[Any, ...], workers: int, threads: int, gpu: bool) -> Any:
    import ray.data

    return dataset.map_batches(
        kind, fn_constructor_args=arguments, batch_format="pyarrow", num_cpus=threads, num_gpus=int(gpu),
        compute=ray.data.ActorPoolStrategy(size=workers),
    )  # fmt: skip


class _ColumnWorker:
    """What each process of the pool has: a model, and the way there (of `column`) or back."""

    def __init__(self, name: str, model: str, threads: int, gpu: bool, column: Column | None) -> None:
        from memcodec.codec import Codec

        self._name = name
        self._codec = Codec.load(model, threads=threads, device="cuda" if gpu else "cpu")
        self._column = column
        if column is not None:
            column.use(self._codec)

    def __call__(self, table: "pyarrow.Table") -> "pyarrow.Table":
        """One batch."""
        if self._column is not None:
            return encode_table(table, self._name, self._column)
        return decode_table(table, self._name, self._codec)
