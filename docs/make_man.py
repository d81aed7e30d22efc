"""Generate the man page from the help: python docs/make_man.py writes docs/memcodec.1 (read it with man -l)."""

from pathlib import Path

import click

import memcodec
from memcodec_cli import main as program


def page() -> str:
    """The man page in troff."""
    lines = [f'.TH MEMCODEC 1 "" "memcodec {memcodec.__version__}" "User Commands"', ".SH NAME"]
    lines += ["memcodec \\- lossless text compression under a frozen language model", ".SH SYNOPSIS"]
    lines += [".B memcodec", "COMMAND [OPTION]... [FILE]...", ".SH DESCRIPTION", *_text(program.help or "")]
    root = click.Context(program, info_name="memcodec", **program.context_settings)
    for name, command in commands("", program):
        lines += [f".SH {_plain(name.upper())}", f".B memcodec {_plain(name)}"]
        context = click.Context(command, root, name)
        lines += [_plain(" ".join(command.collect_usage_pieces(context))), ".PP", *_text(command.help or "")]
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record and record[1]:
                lines += [".TP", f".B {_plain(record[0])}", *_text(record[1])]
    return "\n".join(lines) + "\n"


def commands(before: str, group: click.Group) -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in sorted(group.commands.items()):
        whole = f"{before} {name}".strip()
        found += commands(whole, command) if isinstance(command, click.Group) else [(whole, command)]
    return found


def _text(text: str) -> list[str]:
    """The paragraphs of a help text, one line each."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return [line for part in paragraphs if part for line in (_plain(part), ".PP")][:-1]


def _plain(text: str) -> str:
    """Escape a text, so that troff reads no part of it as a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


if __name__ == "__main__":
    (Path(__file__).parent / "memcodec.1").write_text(page())
