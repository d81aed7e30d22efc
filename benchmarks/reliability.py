"""All figures of docs/reliability.md: python benchmarks/reliability.py [--quick] [--only PART,PART] [--out FOLDER]

Runs faults.py, hostile.py, crashes.py, matrix.py and concurrency.py, each in a process, and writes a table of the
results, commands and times, reliability.md. --quick: a tenth of the cases, and texts of 1 KB. With --only, the results
of other parts in --out are kept, with their date and machine. Fuzzing is not included: fuzz.py.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import faults

FULL: dict[str, list[str]] = {
    "faults": [],
    "hostile": [],
    "crashes": [],
    "matrix": ["--numba", "0.68.1", "--numba", "0.67.0"],
    "concurrency": [],
}
QUICK: dict[str, list[str]] = {
    "faults": ["--flips", "400", "--corruptions", "1000"],
    "hostile": [],
    "crashes": ["--kills", "10"],
    "matrix": ["--bytes", "1024"],
    "concurrency": ["--rounds", "5"],
}


def main() -> None:
    """Run the parts, then combine their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(FULL), help="parts to run; others are taken from --out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "reliability")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    runs_path = options.out / "runs.json"
    runs: dict[str, Any] = json.loads(runs_path.read_text()) if runs_path.exists() else {}
    parts = list(filter(None, options.only.split(",")))
    if unknown := set(parts) - set(FULL):
        parser.error(f"--only: {', '.join(sorted(unknown))}: the parts are {', '.join(FULL)}")
    for part in parts:
        start = time.monotonic()
        given = (QUICK if options.quick else FULL)[part]
        script = str(Path(__file__).with_name(f"{part}.py"))
        print(f"== {part}", flush=True)
        (options.out / f"{part}.json").unlink(missing_ok=True)
        if subprocess.run([sys.executable, script, *given, "--out", str(options.out)]).returncode:
            failed.append(part)
        runs[part] = {"command": " ".join([f"{part}.py", *given]), "seconds": time.monotonic() - start}
        runs_path.write_text(json.dumps(runs, indent=1) + "\n")
    (options.out / "reliability.md").write_text(render(options.out, runs))
    print((options.out / "reliability.md").read_text())
    if failed:
        sys.exit(f"reliability: error: {', '.join(failed)}")


def render(folder: Path, runs: dict[str, Any]) -> str:
    """The table of all results in the folder. runs: the command and the seconds of each part, where they are known."""
    measured: dict[str, list[str]] = {}
    lines = ["| test | cases | failed | promised | details | command | s |"]
    lines += ["| --- | ---: | ---: | --- | --- | --- | ---: |"]
    for part in FULL:
        path = folder / f"{part}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        if "date" in found:
            about = found["machine"]
            measured.setdefault(f"{found['date']}, {about['processor']}, {about['cores']} cores", []).append(part)
        for number, (what, cases, failed, more) in enumerate(ROWS[part](found)):
            promised = next(text for start, text in PROMISED.items() if start in what)
            command = f"`python benchmarks/{runs[part]['command']}`" if part in runs else ""
            seconds = f"{runs[part]['seconds']:.0f}" if part in runs and not number else ""
            lines.append("| " + " | ".join([what, cases, failed, promised, more, command, seconds]) + " |")
    return "\n".join([*(f"{when}: {', '.join(parts)}." for when, parts in measured.items()), "", *lines]) + "\n"


PROMISED = {  # by the beginning of the description
    "each bit": "the same bytes, or an error of one line",
    "corruptions": "the same bytes, or an error of one line",
    "files cut": "every chunk that is still there",
    "hostile": "an error within the memory limit; nothing that was not named is run, downloaded or read",
    "kill -9 of resume": "the bytes of an uninterrupted run",
    "kill -9": "an absent or complete output, an unchanged input",
    "Ctrl-C": "ends within a batch, no file remains",
    "environments": "the same files, each decodes everywhere",
    "4 threads": "correct results",
    "3 processes": "one cache",
}
Rows = list[tuple[str, str, str, str]]


def _faults(found: dict[str, Any]) -> Rows:
    names = {kind: f"each bit of a small {kind} flipped" for kind in faults.KINDS}
    return [
        (
            names.get(row["what"], row["what"]), f"{row['cases']:,}", f"{len(row['wrong']):,}",
            ", ".join(f"{word}: {count:,}" for word, count in row["outcomes"].items())
            + f"; longest {row['longest']:.2f} s, memory at most +{row['memory'] / 1e6:.0f} MB",
        )
        for row in found["rows"]
    ]  # fmt: skip


def _hostile(found: dict[str, Any]) -> Rows:
    rows = found["rows"]
    slowest = max(rows, key=lambda row: row["seconds"])
    largest = max(rows, key=lambda row: row["memory"])
    more = f"longest {slowest['seconds']:.1f} s ({slowest['what']}), most memory +{largest['memory'] / 1e6:.0f} MB"
    return [("hostile files", f"{len(rows)}", f"{sum(row['wrong'] for row in rows)}", f"{more} ({largest['what']})")]


def _crashes(found: dict[str, Any]) -> Rows:
    kills: Rows = [
        (
            f"kill -9 of {row['way']}", f"{row['kills']}", f"{len(row['wrong'])}",
            f"{row['complete']} were complete, {row['with_temporary']} left a temporary or side file for the next run",
        )
        for row in found["kills"]
    ]  # fmt: skip
    return kills + [
        (
            f"Ctrl-C of {row['way']}",
            f"{row['interrupts']}",
            f"{len(row['wrong'])}",
            f"ended in {row['longest']:.2f} s at most",
        )
        for row in found["interrupts"]
    ]


def _matrix(found: dict[str, Any]) -> Rows:
    count = len(found["rows"])
    return [
        (
            f"{count} environments, each decodes what each encodes", f"{count * found['chunks']:,} chunks",
            f"{sum(row['failed'] for row in found['rows'])}",
            f"{len(found['languages'])} texts, {found['files']} different files in all",
        )
    ]  # fmt: skip


def _concurrency(found: dict[str, Any]) -> Rows:
    return [(row["what"], f"{row['cases']}", f"{len(row['wrong'])}", "") for row in found["rows"]]


ROWS = {"faults": _faults, "hostile": _hostile, "crashes": _crashes, "matrix": _matrix, "concurrency": _concurrency}


if __name__ == "__main__":
    main()
