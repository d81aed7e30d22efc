"""Files as pieces of less than 60 MB, for a machine that takes no more at one time.

    python training/pieces.py split FOLDER BYTES,BYTES,... FILE...   # writes FOLDER/0/piece, FOLDER/1/piece, ...
    python training/pieces.py join FOLDER TARGET                     # writes the files into TARGET

The sizes are those of the first pieces; the last size counts for the rest too. weights.safetensors is compressed.
"""

import io
import sys
import tarfile
from pathlib import Path

import zstandard


def split(folder: Path, sizes: list[int], files: list[Path]) -> None:
    """Write files as pieces."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for file in files:
            archive.add(file, file.name)
    whole = zstandard.ZstdCompressor(level=3, threads=2).compress(stream.getvalue())
    start, number = 0, 0
    while start < len(whole):
        size = sizes[min(number, len(sizes) - 1)]
        (folder / str(number)).mkdir(parents=True, exist_ok=True)
        (folder / str(number) / "piece").write_bytes(whole[start : start + size])
        print(folder / str(number), len(whole[start : start + size]))
        start, number = start + size, number + 1


def join(folder: Path, target: Path) -> None:
    """Write the files that `split` was given into a folder."""
    pieces = [folder / str(number) / "piece" for number in range(len(list(folder.iterdir())))]
    whole = zstandard.ZstdDecompressor().decompress(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        archive.extractall(target, filter="data")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["split", folder, sizes, *files] if files:
            split(Path(folder), [int(size) for size in sizes.split(",")], [Path(file) for file in files])
        case ["join", folder, target]:
            join(Path(folder), Path(target))
        case _:
            raise SystemExit(__doc__)
