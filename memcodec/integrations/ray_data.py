"""Ray Data: columns of text as columns of frames, on the workers of a cluster."""

from typing import TYPE_CHECKING, Any

from memcodec.codec import Codec
from memcodec.integrations.tables import Column, decode_table, encode_table
from memcodec.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    import pyarrow


def encode_column(
    dataset: Any, name: str, column: Column, *, workers: int = 1, threads: int = 1, gpu: bool = False
) -> Any:
    """A Ray dataset whose column of text becomes a column of frames when it is computed.

    The metadata of the column, which Parquet files keep, holds what decoding needs. workers: processes, each with a
    model; threads: CPU threads of each; gpu: whether each has a GPU.
    """
    return _map(dataset, _ColumnWorker, (name, column.model, threads, gpu, column), workers, threads, gpu)


def decode_column(
    dataset: Any,
    name: str,
    model: str = DEFAULT_MODEL,
    *,
    workers: int = 1,
    threads: int = 1,
    gpu: bool = False,
) -> Any:
    """A Ray dataset whose column of frames becomes a column of text. model: a name, or a directory on every machine."""
    return _map(dataset, _ColumnWorker, (name, model, threads, gpu, None), workers, threads, gpu)


def _map(dataset: Any, kind: type, arguments: tuple[Any, ...], workers: int, threads: int, gpu: bool) -> Any:
    import ray.data

    return dataset.map_batches(
        kind, fn_constructor_args=arguments, batch_format="pyarrow", num_cpus=threads, num_gpus=int(gpu),
        compute=ray.data.ActorPoolStrategy(size=workers),
    )  # fmt: skip


class _ColumnWorker:
    """A process of the pool, with a model: it encodes with `column`, or decodes without one."""

    def __init__(self, name: str, model: str, threads: int, gpu: bool, column: Column | None) -> None:
        self._name = name
        self._codec = Codec.load(model, threads=threads, device="cuda" if gpu else "cpu")
        self._column = column
        if column is not None:
            column.use(self._codec)

    def __call__(self, table: "pyarrow.Table") -> "pyarrow.Table":
        """Encode or decode one batch."""
        if self._column is not None:
            return encode_table(table, self._name, self._column)
        return decode_table(table, self._name, self._codec)
