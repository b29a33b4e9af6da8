"""The errors that cpuc raises on purpose, each with the exit code that the command line gives it, and how they are shown."""

from __future__ import annotations


class CpucError(Exception):
    """Something the user can act on; the message names what is wrong and what to do about it."""

    exit_code = 1


class InputError(CpucError, ValueError):
    """The data given to the model is not what the model takes."""


class BundleError(CpucError):
    """The file is not a bundle that this installation can run."""


class ModelError(CpucError):
    """The source model cannot be found, read or compiled."""


class ParityError(CpucError):
    """The compiled artifact does not agree with the original model."""

    exit_code = 3


def printable(text: str) -> str:
    """`text` with what could move a terminal's cursor or turn its direction escaped: names in bundles are anybody's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
