"""Messages of at most 200 bytes over radio and satellite links: how many fit a packet.

    python benchmarks/links.py [--out FOLDER] [--messages N]

For each kind of message (messages.py), N messages that neither the primer nor zstd's dictionary has seen are put into
packets in their order, again and again, each after one byte with its length. A message that does not fit what is left
of a packet begins the next one, and one that is longer than a packet takes several. Every frame is decoded. Writes
links.json and links.md.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import messages
import zstandard

from memcodec.bench.messages import split
from memcodec.bench.results import machine, today
from memcodec.codec import Codec
from memcodec.primer import Primer

LONGEST = 200  # bytes of a message
PRIMER_TOKENS = 400
DICTIONARIES = (1 << 10, 1 << 12, 1 << 14)  # bytes; the best of them counts, though the receiver needs it too
# The largest payloads: LoRaWAN EU868 at DR0 to DR2 and at DR4 to DR7, Iridium SBD from the device.
PACKETS = (51, 222, 340)
ROUNDS = 50  # of the same messages, so that the last packet does not matter
WAYS = ("as they are", "zstd -19, dictionary", "frames, primer")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--messages", type=int, default=60)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    codec = Codec.load(device="cpu")
    found: dict[str, Any] = {"date": today(), "machine": machine(), "identity": codec.model.identity.hex()}
    found |= {"packets": PACKETS, "kinds": {}}
    for kind, make in messages.KINDS.items():
        train, test = split([message for message in make() if len(message) <= LONGEST])
        if not test:
            continue
        found["kinds"][kind] = measure(codec, train, test[: options.messages])
        print(kind, found["kinds"][kind], flush=True)
        (options.out / "links.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "links.md").write_text(render(found))


def measure(codec: Codec, train: Sequence[bytes], test: Sequence[bytes]) -> dict[str, Any]:
    """Bytes a message and messages a packet, by way."""
    primer = Primer.from_texts(train, PRIMER_TOKENS, codec)
    primed = codec.with_primer(primer)
    frames = primed.encode_frames(test)
    if primed.decode_frames(frames) != list(test):
        raise SystemExit("links: error: frames do not decode to their messages")
    sizes = [[len(packed) for packed in way] for way in (test, with_dictionary(train, test), frames)]
    return {
        "messages": len(test),
        "primer_tokens": len(primer.tokens),
        "bytes": {way: sum(found) / len(test) for way, found in zip(WAYS, sizes, strict=True)},
        "longest": {way: max(found) for way, found in zip(WAYS, sizes, strict=True)},
        "a_packet": {
            str(packet): {
                way: ROUNDS * len(test) / packets(ROUNDS * found, packet)
                for way, found in zip(WAYS, sizes, strict=True)
            }
            for packet in PACKETS
        },
    }


def with_dictionary(train: Sequence[bytes], test: Sequence[bytes]) -> list[bytes]:
    """The messages by zstd with the best dictionary, each without the 4 bytes that are the same in all."""

    def by(size: int) -> list[bytes]:
        dictionary = zstandard.train_dictionary(size, list(train))
        packer = zstandard.ZstdCompressor(
            level=19, dict_data=dictionary, write_content_size=False, write_dict_id=False, write_checksum=False
        )
        return [packer.compress(message)[4:] for message in test]

    return min(map(by, DICTIONARIES), key=lambda packed: sum(map(len, packed)))


def packets(sizes: Sequence[int], packet: int) -> int:
    """Packets for messages of these sizes, in this order, each after a byte with its length."""
    count, left = 0, 0
    for size in sizes:
        need = size + 1
        if need > left:
            count += -(-need // packet)
            left = -need % packet
        else:
            left -= need
    return count


def render(found: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [f"{found['date']}, {found['machine']['processor']}, model {found['identity'][:16]}.", ""]
    number: Callable[[float], str] = "{:.1f}".format
    shown = [f"{packet} bytes" for packet in found["packets"]]
    lines.append("| | bytes a message | longest | " + " | ".join(f"a packet of {packet}" for packet in shown) + " |")
    lines.append("| --- |" + " ---: |" * (len(shown) + 2))
    for kind, about in found["kinds"].items():
        by_way = [number(about["bytes"][way]) for way in WAYS]
        longest = [str(about["longest"][way]) for way in WAYS]
        cells = [[number(one[way]) for way in WAYS] for one in about["a_packet"].values()]
        lines.append(f"| {kind} | " + " | ".join(" / ".join(cell) for cell in (by_way, longest, *cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
