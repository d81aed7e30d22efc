"""Generate the man page from the help texts: python docs/make_man.py writes docs/memcodec.1 (view it with man -l)."""

import inspect
from pathlib import Path

import click

import memcodec
from memcodec_cli import main as program


def page() -> str:
    """The page, in troff."""
    lines = [f'.TH MEMCODEC 1 "" "memcodec {memcodec.__version__}" "User Commands"', ".SH NAME"]
    lines += [
        "memcodec \\- lossless text compression with memory embeddings under a frozen language model",
        ".SH SYNOPSIS",
    ]
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


def commands(prefix: str, group: click.Group) -> list[tuple[str, click.Command]]:
    """The commands of a group and of its subgroups, with their full names, sorted."""
    found: list[tuple[str, click.Command]] = []
    for name, command in sorted(group.commands.items()):
        whole = f"{prefix} {name}".strip()
        found += commands(whole, command) if isinstance(command, click.Group) else [(whole, command)]
    return found


def paragraphs(help_text: str) -> list[list[str]]:
    """The paragraphs of a help text: lists of one line, and of all lines where click keeps them (after \\b)."""
    found = []
    for part in inspect.cleandoc(help_text).split("\n\n"):
        if part.startswith("\b\n"):
            found.append(part[2:].splitlines())
        elif part.strip():
            found.append([" ".join(part.split())])
    return found


def _text(help_text: str) -> list[str]:
    """The troff requests that print a help text."""
    lines: list[str] = []
    for part in paragraphs(help_text):
        plain = [_plain(line) for line in part]
        lines += [".PP", *(plain if len(plain) == 1 else [".nf", *plain, ".fi"])]
    return lines[1:]


def _plain(text: str) -> str:
    """Escape what troff would interpret."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


if __name__ == "__main__":
    (Path(__file__).parent / "memcodec.1").write_text(page())
