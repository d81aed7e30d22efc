"""The errors that memcodec raises on purpose, which all derive from `MemcodecError`, and its warning."""


class MemcodecError(Exception):
    """Base of every error that memcodec raises on purpose; its text is one line."""


class FormatError(MemcodecError):
    """The bytes are not a memcodec container, are damaged, or need a newer version."""


class TruncatedError(FormatError):
    """The end of the file is missing, but its header is there, so that what is whole may be salvaged."""


class ChecksumError(MemcodecError):
    """Decoded bytes do not match the checksum that was stored with them."""


class ModelMismatchError(MemcodecError):
    """The model at hand is not the one that the file was encoded with."""


class PrimerMismatchError(ModelMismatchError):
    """The primer at hand is not the one that the file was encoded with, or there is none."""


class ModelNotFoundError(MemcodecError):
    """The model cannot be found, fetched, or used (not a causal LM, no byte-level BPE)."""


class EncodeError(MemcodecError):
    """The input cannot be encoded with these settings."""


class MachineError(MemcodecError):
    """This machine does not compute what the exact LM is defined to be, or has no such device."""


class EngineError(MemcodecError):
    """An engine cannot start its workers, or has lost one for good."""


class MissingDependencyError(MemcodecError):
    """A feature needs a package that is not installed."""


class MemcodecWarning(RuntimeWarning):
    """Something works, but more slowly than it should: a GPU that cannot be used, a model that cannot be cached."""


def wrong_file(what: str) -> MachineError:
    """The error for a file that was just encoded and does not decode to its document. what: what is wrong with it."""
    return MachineError(
        f"{what}, so it was discarded, since this machine or memcodec computes wrongly: "
        "try --device cpu or MEMCODEC_INSTRUCTIONS=vectors-16, and report it"
    )


def needs_torch(error: ImportError) -> MissingDependencyError:
    """The error for a feature that needs the extra `torch`, if it is not installed."""
    return MissingDependencyError(
        f"this needs PyTorch and transformers ({error.name or error} is missing): install the extra "
        "torch, in a clone with pip install -c constraints.txt '.[torch]'"
    )


def needs_triton(error: ImportError) -> MissingDependencyError:
    """The error for kernels of a GPU, if the extra `gpu` is not installed."""
    return MissingDependencyError(
        f"this needs Triton ({error.name or error} is missing): install the extra gpu, on Linux, "
        "in a clone with pip install -c constraints.txt '.[gpu]'"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or the name of its type if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
