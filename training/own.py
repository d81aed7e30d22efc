"""An adapter for your own texts: it starts from that of the built-in model, and goes on with the texts of some files.

    python training/own.py FILE... --minutes 15 --out FOLDER

The last tenth of each file is held out: the bits per token of the first 12 chunks of 400 tokens of each of these parts
are printed before and after. The folder is then a model, for `memcodec compress --model FOLDER`; whoever decompresses
needs a copy of it. Files are UTF-8 text and should be like the texts that are to be compressed later, but not the same.
On two CPU cores, 15 minutes are about 0.2 million tokens; more text than that is not read completely.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import data
import export
import numpy as np
import torch
import train
import weights as stored
from safetensors.numpy import load_file, save_file

COPIED = ("config.json", "tokenizer.json", "model.gguf")
RATE = 4e-4  # lower than at the beginning: the adapter has been trained before
KIND = "own/text"
LEAST = 1000  # tokens of all files together, of which a tenth is held out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--minutes", type=float, required=True, help="of training")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--rate", type=float, default=RATE, help="highest learning rate")
    parser.add_argument("--tokens", type=int, help="a step (default: 2,048 on a CPU, 65,536 on a GPU)")
    a = parser.parse_args()
    try:
        a.out.mkdir(parents=True, exist_ok=True)
        if any(a.out.iterdir()):
            parser.error(f"{a.out}: it is not empty")
    except OSError as error:
        parser.error(str(error))
    if not stored.WEIGHTS.exists():
        stored.export()
    try:
        documents, held = split(a.files)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    built_in, folder = adapter_of_model()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, prefix = train.set_up(device, stored.WEIGHTS)
    tokens = a.tokens or data.STEP[device.type]
    with tempfile.TemporaryDirectory() as work:  # the folder stays empty until the model is complete
        options = train.Options(a.minutes, Path(work), a.rate, tokens=tokens, evaluate_every=1e9)
        run = train.Run(model, documents, prefix, options)
        factors = {name: torch.from_numpy(values) for name, values in export.imported(built_in).items()}
        run.start_from(factors)
        before = train.bits_by_text(model, held, prefix, tokens, run.adapter)
        print(train.render(run.train(held), before))
    trained = {name: p.detach().cpu().numpy() for name, p in run.adapter.factors.items()}
    write(a.out, trained, built_in, folder)
    print(f"wrote {a.out}: memcodec compress --model {a.out} FILE")


def split(files: list[Path]) -> tuple[data.Documents, train.Texts]:
    """What is trained on, and the first chunks of the last tenth of each file. Raises OSError, ValueError."""
    texts = []
    for path in files:
        try:
            texts.append((KIND, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: it is not UTF-8 text ({error.reason})") from error
    whole = data.tokenize(texts)
    parts, held = [], {}
    for path, start, end in zip(files, whole.starts[:-1], whole.starts[1:], strict=True):
        middle = end - (end - start) // 10
        parts.append((KIND, whole.ids[start:middle]))
        if chunks := [whole.ids[i : min(i + data.CHUNK, end)].astype(np.int64) for i in range(middle, end, data.CHUNK)]:
            held[str(path)] = chunks[: data.CHUNKS]
    if len(whole.ids) < LEAST:
        raise ValueError(f"the files have {len(whole.ids)} tokens together: give at least {LEAST:,}")
    return data.Documents.of([part for part in parts if len(part[1])]), held


def adapter_of_model() -> tuple[dict[str, np.ndarray], Path]:
    """The tensors of the adapter of the built-in model, and the model's folder."""
    from memcodec.models import registry

    folder = registry.resolve(registry.DEFAULT_MODEL).path
    return load_file(folder / "adapter.safetensors"), folder


def write(out: Path, trained: dict[str, np.ndarray], built_in: dict[str, np.ndarray], folder: Path) -> None:
    """Write a model folder: the built-in model with another adapter, which keeps the means of the norms."""
    tensors, shared = export.export(trained, 1.0)
    means = {name: values for name, values in built_in.items() if name.endswith(".mean")}
    save_file(tensors | means, out / "adapter.safetensors", {"shared": json.dumps(shared)})
    for name in COPIED:
        shutil.copy(folder / name, out)


if __name__ == "__main__":
    main()
