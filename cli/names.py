"""How files are named in what the program prints: never so that a name can control the terminal.

Messages on standard error, and results on a terminal, have a name with such characters as the shell reads it,
$'a\\033[31m'; results for another program have every name unchanged. GNU ls and its relatives decide in the same way.
"""

import sys

import click

STANDARD_STREAM = "-"  # as a file name: standard input or standard output


def display_name(name: str) -> str:
    """The name of a file as messages show it."""
    return "standard input" if name == STANDARD_STREAM else quoted(name)


def result_name(name: str) -> str:
    """The name of a file, or a key, as results on standard output show it: unchanged unless that is a terminal."""
    if name == STANDARD_STREAM or (sys.stdout is not None and sys.stdout.isatty()):
        return display_name(name)
    return name


def quoted(name: str) -> str:
    """A name, as bash, zsh and ksh read it if it contains anything that is not printed as it is."""
    if name.isprintable() and not name.startswith("$'"):
        return name
    return "$'" + escaped(name.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def escaped(text: str) -> str:
    """Text, with the bytes of characters that could control the terminal in octal."""
    return "".join(c if c.isprintable() else "".join(f"\\{byte:03o}" for byte in _bytes(c)) for c in text)


def print_line(line: str) -> None:
    """Print a line of results to standard output, with file names as the bytes that they are."""
    click.echo(b"".join(c.encode() if c.isascii() else _bytes(c) for c in line))


def _bytes(character: str) -> bytes:
    is_byte = "\udc80" <= character <= "\udcff"  # Python's stand-in for a byte that is not UTF-8
    return character.encode("utf-8", "surrogateescape" if is_byte else "surrogatepass")
