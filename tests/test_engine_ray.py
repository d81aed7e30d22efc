"""Documents and columns on a Ray cluster: a real one on this machine, with two workers."""

import copy
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest
import ray
import ray.data

import memcodec
from memcodec import (
    ChecksumError,
    Codec,
    EncodeError,
    EngineError,
    MachineError,
    MissingDependencyError,
    Primer,
    Progress,
    Prompt,
    Readout,
)
from memcodec.engines import ray as cluster
from memcodec.engines.ray import RayEngine, _Worker
from memcodec.integrations import tables
from memcodec.integrations.ray_data import _ColumnWorker, decode_column, encode_column
from memcodec.integrations.tables import Column
from memcodec.verification import Verifier

from .conftest import TEXT, Run, store_nothing
from .test_cli import refused

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings

DOCUMENT = " ".join(random.Random(0).choices(TEXT.split(), k=1500)).encode()  # text that zstd does not make tiny


@pytest.fixture(scope="module", autouse=True)
def local_cluster() -> Iterator[None]:
    """A cluster that was started before."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def not_for_ever() -> Iterator[None]:
    """Make a test fail instead of waiting for a cluster for a long time."""

    def stop(*_: Any) -> None:
        raise TimeoutError("Ray does not answer")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(180)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def all_by_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    store_nothing(monkeypatch)


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    with RayEngine(workers=2) as found:
        yield found


def test_the_bytes_are_those_of_this_process(tiny: Codec, engine: RayEngine) -> None:
    far = tiny.with_engine(engine)
    for settings in ({}, {"context": 0}, {"context": 50, "site": Readout(share=0)}, {"context": "max"}):
        blob = tiny.encode(DOCUMENT, **settings)  # type: ignore[arg-type]
        assert far.encode(DOCUMENT, **settings) == blob  # type: ignore[arg-type]
        assert far.decode(blob) == DOCUMENT


def test_the_prompt_site_too(tiny: Codec, engine: RayEngine) -> None:
    settings: dict[str, Any] = {"site": Prompt(steps=8, bits=1), "chunk_tokens": 20}
    blob = tiny.encode(DOCUMENT[:900], **settings)
    assert tiny.with_engine(engine).encode(DOCUMENT[:900], **settings) == blob
    assert tiny.with_engine(engine).decode(blob) == DOCUMENT[:900]


def test_many_documents_and_a_primer(tiny: Codec, engine: RayEngine) -> None:
    documents = [DOCUMENT[start : start + 900] for start in range(0, 9000, 900)]
    primed = tiny.with_primer(Primer.from_texts([TEXT], 60, tiny))
    far = primed.with_engine(engine)
    blobs = list(primed.encode_many(documents))
    assert list(far.encode_many(documents)) == blobs
    assert far.decode_many(blobs) == documents


def test_a_document_with_fewer_groups_than_its_file(
    tiny: Codec, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that changes while it is verified: the results ended early, and Python said StopIteration."""
    known = Verifier._known_groups
    monkeypatch.setattr(Verifier, "_known_groups", lambda *given: list(known(*given))[:-1])
    with pytest.raises(MachineError, match="the encoded file has other chunks than its document"):
        tiny.with_engine(engine).encode(DOCUMENT, chunk_tokens=50, context=0)


def test_progress_reaches_the_end(tiny: Codec, engine: RayEngine) -> None:
    seen: list[Progress] = []
    tiny.with_engine(engine).encode(DOCUMENT, context=0, progress=seen.append)
    assert {one.stage for one in seen} == {"fit", "verify"}
    assert seen[-1].done == 1 and seen[-1].tokens_done == seen[-1].tokens_total > 1000
    assert [one.done for one in seen] == sorted(one.done for one in seen)


def test_an_error_of_a_worker_is_the_same_here(tiny: Codec, engine: RayEngine) -> None:
    blob = bytearray(tiny.encode(DOCUMENT, context=0))
    blob[-400] ^= 8
    with pytest.raises(memcodec.MemcodecError) as local:
        tiny.decode(blob)
    with pytest.raises(type(local.value)) as remote:
        tiny.with_engine(engine).decode(blob)
    assert str(local.value) == str(remote.value)
    assert isinstance(local.value, ChecksumError)


# ---- lost workers


def _pid(worker: Any) -> int:
    """The process id of a worker, as soon as it has started."""
    return int(ray.get(worker.__ray_call__.options(max_task_retries=-1).remote(lambda _: os.getpid())))


def test_a_worker_that_never_starts_is_not_waited_for(tiny: Codec) -> None:
    """All CPUs of the cluster but one are in use, so that one of two workers can start."""
    taken = ray.remote(_Taken).options(num_cpus=ray.available_resources()["CPU"] - 1).remote()
    ray.get(taken.there.remote(), timeout=60)
    documents = [DOCUMENT[start : start + 500] for start in range(0, 2000, 500)]
    with RayEngine(workers=2) as engine:
        far = tiny.with_engine(engine)
        assert far.decode_many(list(far.encode_many(documents))) == documents
    more = ray.remote(_Taken).options(num_cpus=1).remote()
    ray.get(more.there.remote(), timeout=60)
    with RayEngine(start_timeout=3) as engine, pytest.raises(EngineError, match="no worker starts in 3 s"):
        tiny.with_engine(engine).encode(DOCUMENT)
    for actor in (taken, more):
        ray.kill(actor)


class _Taken:
    def there(self) -> bool:
        return True


def test_documents_that_take_turns_and_threads(tiny: Codec) -> None:
    """With and without a primer at the same time, from two threads."""
    primed = tiny.with_primer(Primer.from_texts([TEXT], 60, tiny))
    documents = [DOCUMENT[start : start + 900] for start in range(0, 5400, 900)]
    with RayEngine(workers=1) as engine:
        found: dict[int, list[bytes]] = {}

        def work(number: int, codec: Codec) -> None:
            found[number] = [codec.with_engine(engine).encode(document) for document in documents]

        threads = [threading.Thread(target=work, args=pair) for pair in enumerate((tiny, primed))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {0: [tiny.encode(d) for d in documents], 1: [primed.encode(d) for d in documents]}
        settings: dict[str, Any] = {"context": 0, "batch": 1}
        whole = list(tiny.encode_many(documents, **settings))
        begun = tiny.with_engine(engine).encode_many(documents, **settings)
        assert next(begun) == whole[0]
        assert primed.with_engine(engine).encode(documents[1]) == found[1][1]
        assert list(begun) == whole[1:]
        begun = tiny.with_engine(engine).encode_many(documents, **settings)
        next(begun)
        begun.close()  # half way
        assert tiny.with_engine(engine).encode(documents[2]) == found[0][2]
    engine.close()


def test_a_model_that_changed_since_it_was_loaded(tiny_folders: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_folders("llama"), tmp_path / "model")
    codec = Codec.load(str(tmp_path / "model"), device="cpu")
    shutil.copytree(tiny_folders("qwen2"), tmp_path / "model", dirs_exist_ok=True)
    with RayEngine(workers=1) as engine, pytest.raises(EngineError, match="has changed since it was loaded"):
        codec.with_engine(engine).encode(DOCUMENT)


@pytest.mark.parametrize("context", [0, "auto"])
def test_the_lots_of_a_lost_worker_run_again(tiny: Codec, context: Any) -> None:
    with RayEngine(workers=2) as engine:
        far = tiny.with_engine(engine)
        victim = _pid(engine.workers()[0])
        killed = []

        def kill(progress: Progress) -> None:
            if not killed:
                os.kill(victim, signal.SIGKILL)
                killed.append(progress)

        assert far.encode(DOCUMENT, context=context, progress=kill) == tiny.encode(DOCUMENT, context=context)
        assert killed
        assert _pid(engine.workers()[0]) != victim  # Ray has started it again
        assert far.decode(tiny.encode(DOCUMENT)) == DOCUMENT


def test_groups_that_no_worker_survives(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dies(_Worker):
        def encode(self, *arguments: Any) -> Any:
            os._exit(1)

    monkeypatch.setattr(cluster, "_Worker", Dies)
    with RayEngine(workers=1) as engine, pytest.raises(EngineError, match="4 workers were lost at the same groups"):
        tiny.with_engine(engine).encode(DOCUMENT)


def test_workers_that_do_not_start(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(_Worker):
        def __init__(self, *arguments: Any) -> None:
            raise RuntimeError("no such thing")

    monkeypatch.setattr(cluster, "_Worker", Fails)
    with RayEngine(workers=1) as engine, pytest.raises(EngineError, match=r"no worker starts: .*no such thing"):
        tiny.with_engine(engine).encode(DOCUMENT)


def test_workers_of_another_version(tiny: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(_Worker):
        def version(self) -> str:
            return "0.1.0"

    monkeypatch.setattr(cluster, "_Worker", Old)
    with RayEngine(workers=1) as engine, pytest.raises(EngineError, match=r"a worker has memcodec 0\.1\.0"):
        tiny.with_engine(engine).encode(DOCUMENT)


# ---- options and errors


def test_by_name_and_on_the_command_line(tiny: Codec, llama_folder: Path, run: Run) -> None:
    Path("a.txt").write_bytes(DOCUMENT)
    done = run("compress", "--model", llama_folder, "--engine", "ray", "--workers", 2, "a.txt")
    assert done.exit_code == 0, done.output
    blob = Path("a.txt.memz").read_bytes()
    assert blob == tiny.encode(DOCUMENT)
    done = run("decompress", "--model", llama_folder, "--engine", "ray", "a.txt.memz", "-o", "back")
    assert done.exit_code == 0, done.output
    assert Path("back").read_bytes() == DOCUMENT
    assert run("verify", "--decode", "--model", llama_folder, "--engine", "ray", "a.txt.memz").exit_code == 0
    assert memcodec.decode(blob, str(llama_folder), engine="ray", threads=1) == DOCUMENT
    assert memcodec.encode(DOCUMENT, str(llama_folder), engine="ray") == blob


def test_refusals(tiny: Codec, llama_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("a.txt").write_bytes(DOCUMENT)
    assert "--workers is for --engine ray" in refused(run("compress", "--workers", 2, "a.txt"), 2)
    monkeypatch.setenv("MEMCODEC_WORKERS", "2")
    assert run("compress", "--model", llama_folder, "a.txt").exit_code == 0
    monkeypatch.delenv("MEMCODEC_WORKERS")
    too_many = run("compress", "--model", llama_folder, "--engine", "ray", "--workers", 64, "a.txt", "-f")
    assert "the cluster has room for 4 workers of 1 CPUs each" in refused(too_many)
    for wrong in ({"workers": 0}, {"threads": 0}, {"device": "tpu"}):
        with pytest.raises(EncodeError, match=next(iter(wrong))):
            RayEngine(**wrong)  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match="engine 'spark': give local or ray"):
        tiny.with_engine("spark")


def test_without_ray_the_error_says_how_to_install_it(
    llama_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.txt").write_bytes(DOCUMENT)
    monkeypatch.delitem(sys.modules, "memcodec.engines.ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"Ray is not installed: install the extra ray, "):
        memcodec.encode(DOCUMENT, str(llama_folder), engine="ray")
    assert "Ray is not installed" in refused(run("compress", "--model", llama_folder, "--engine", "ray", "a.txt"))


@pytest.mark.parametrize(
    ("nodes", "settings", "workers", "gpus"),
    [
        ([{"CPU": 4.0}], {}, 4, 0),
        ([{"CPU": 4.0}, {"CPU": 3.0}], {}, 7, 0),
        ([{"CPU": 4.0}, {"CPU": 3.0}], {"threads": 2}, 3, 0),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], {}, 3, 1),
        ([{"CPU": 8.0, "GPU": 2.0}], {"device": "cpu"}, 8, 0),
    ],
)
def test_there_is_a_worker_for_each_gpu_or_cpu(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], settings: Any, workers: int, gpus: int
) -> None:
    def of_all() -> dict[str, float]:
        return dict(sum(map(Counter, nodes), Counter()))

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(ray, "available_resources", of_all)
    assert RayEngine(**settings)._room() == (workers, gpus)


STARTS = """
import os, sys
from pathlib import Path
import memcodec, ray

def children():
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()

during = []
memcodec.encode(sys.argv[1], sys.argv[2], engine="ray", progress=lambda _: during.append(len(children())))
print(max(during) > 1, ray.is_initialized(), children())
"""


def test_a_cluster_that_was_started_for_the_work_is_stopped_after_it(llama_folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-W", "ignore", "-c", STARTS, DOCUMENT.decode(), str(llama_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout) == (0, "True False []\n"), done.stderr


def test_an_engine_pickles_as_its_settings(tiny: Codec) -> None:
    """Workers and locks stay where they are; a codec with an engine can go elsewhere, and a copy of it shares them."""
    engine = RayEngine(2, 3, "cpu", start_timeout=5.0)
    again = pickle.loads(pickle.dumps(tiny.with_engine(engine))).engine
    assert again.__reduce__() == engine.__reduce__() == (RayEngine, (2, 3, "cpu", None, 5.0))
    assert copy.deepcopy(tiny.with_engine(engine)).engine is engine


# ---- Ray Data


def test_a_column_of_parquet_files(tiny: Codec, llama_folder: Path, tmp_path: Path) -> None:
    texts = [TEXT[start : start + 60] for start in range(12)] + [None]
    table = pyarrow.table({"id": range(13), "note": texts})
    (tmp_path / "in").mkdir()
    for half in range(2):
        pyarrow.parquet.write_table(table.slice(half * 7, 7), tmp_path / "in" / f"{half}.parquet")
    primer = Primer.from_texts([TEXT], 40, tiny)
    column = Column(str(llama_folder), primer.to_bytes())

    dataset = ray.data.read_parquet(str(tmp_path / "in"))
    encode_column(dataset, "note", column).write_parquet(str(tmp_path / "out"))
    found = pyarrow.concat_tables(map(pyarrow.parquet.read_table, sorted((tmp_path / "out").iterdir())))
    assert found.schema.field("note").type == pyarrow.binary()
    assert sum(len(frame) for frame in found["note"].to_pylist() if frame) < 60 * 12
    back = tables.decode_table(found, "note", tiny)  # with the metadata of the files, and without Ray
    assert sorted(back["note"].to_pylist(), key=str) == sorted(texts, key=str)

    frames = ray.data.read_parquet(str(tmp_path / "out"))
    rows = decode_column(frames, "note", str(llama_folder)).to_pandas().sort_values("id")
    assert [None if pandas.isna(text) else text for text in rows["note"]] == texts


def test_types_of_columns_come_back(tiny: Codec, llama_folder: Path, tmp_path: Path) -> None:
    """Bytes, in a dictionary; a column of frames is refused."""
    kind = pyarrow.array([b"\xff", None, b"text", b"\xff"]).dictionary_encode()
    table = pyarrow.table({"id": range(4), "kind": kind})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    column = Column(str(llama_folder))
    encode_column(ray.data.read_parquet(str(tmp_path / "a.parquet")), "kind", column).write_parquet(
        str(tmp_path / "out")
    )
    packed = pyarrow.concat_tables(map(pyarrow.parquet.read_table, sorted((tmp_path / "out").iterdir())))
    assert packed["kind"].to_pylist() != table["kind"].to_pylist()
    with pytest.raises(EncodeError, match="column 'kind' holds frames already"):
        _ColumnWorker("kind", str(llama_folder), 1, False, column)(packed)
    decoded = decode_column(ray.data.read_parquet(str(tmp_path / "out")), "kind", str(llama_folder))
    back = pyarrow.concat_tables(ray.get(decoded.to_arrow_refs())).sort_by("id")
    assert back.schema.types == table.schema.types
    assert back.to_pylist() == table.to_pylist()
