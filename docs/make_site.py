"""Build the site in build/site: python docs/make_site.py [--out FOLDER]. Warnings of mkdocs are errors.

The command reference is generated from the help, the Python reference from the docstrings.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import make_man

from memcodec_cli import main as program

ROOT = Path(__file__).parent.parent
_KEPT = {".md", ".png", ".svg", ".json", ".html", ".1"}


def main() -> None:
    """Copy the pages, generate the command reference, and build the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build")
    options = parser.parse_args()
    options.out = options.out.resolve()
    pages, site = options.out / "pages", options.out / "site"
    shutil.rmtree(pages, ignore_errors=True)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    for name in tracked.splitlines():
        if Path(name).suffix in _KEPT and not name.startswith(("tests/", "memcodec/", "spec/vectors/")):
            (pages / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, pages / name)
    (pages / "docs" / "commands.md").write_text(commands())
    config = (ROOT / "docs" / "mkdocs.yml").read_text()
    for name, folder in (("docs_dir", pages), ("site_dir", site), ("paths", f"[{ROOT}]")):
        config = re.sub(rf"(?m)^( *{name}: ).*$", rf"\g<1>{folder}", config)
    (options.out / "mkdocs.yml").write_text(config)
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", str(options.out / "mkdocs.yml")]
    sys.exit(subprocess.run(command).returncode)


def commands() -> str:
    """The command reference, generated from the help."""
    lines = ["# Commands", "", *_paragraphs(program.help or ""), ""]
    root = click.Context(program, info_name="memcodec", **program.context_settings)
    for name, command in make_man.commands("", program):
        context = click.Context(command, root, name)
        lines += [f"## {name}", "", f"    memcodec {name} {' '.join(command.collect_usage_pieces(context))}", ""]
        lines += [*_paragraphs(command.help or ""), "", "| option | meaning |", "| --- | --- |"]
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record and record[1]:
                lines.append(f"| `{record[0]}` | {' '.join(record[1].split())} |".replace("a|b", "a\\|b"))
        lines.append("")
    return "\n".join(lines)


def _paragraphs(help_text: str) -> list[str]:
    lines: list[str] = []
    for part in make_man.paragraphs(help_text):
        if len(part) == 1:
            lines += ["", *part]
        else:  # a title, and lines that are kept as they are
            lines += ["", part[0], "", *(f"  {line}" for line in part[1:])]
    return lines[1:]


if __name__ == "__main__":
    main()
