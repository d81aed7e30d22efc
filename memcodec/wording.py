"""How messages count things."""


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 document", "2,800 bytes"."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"
