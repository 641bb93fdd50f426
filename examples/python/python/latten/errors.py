"""What goes wrong, by kinds. Each kind of the Rust crate is a class; its names and numbers are attributes."""

from __future__ import annotations


class LattenError(Exception):
    """Every error of latten. Its text has the names and numbers."""


class NoAdapterError(LattenError):
    """No usable GPU adapter."""

    found: str
    hint: str


class UnsupportedError(LattenError):
    """The adapter or device lacks something that the call needs."""

    what: str


class ArgumentError(LattenError, ValueError):
    """A value is out of range or does not fit the others."""

    name: str


class ShapeError(LattenError, ValueError):
    """An array has the wrong shape."""

    name: str
    got: str
    want: str


class DTypeError(LattenError, TypeError):
    """An array has the wrong dtype, or is no array."""

    name: str
    got: str
    want: str


class UnknownSequenceError(LattenError, LookupError):
    """The sequence is not (or no longer) in the cache."""

    id: int


class RepeatedSequenceError(LattenError, ValueError):
    """A sequence was named twice in one call."""

    id: int


class CacheFullError(LattenError):
    """Not enough free pages; nothing was changed."""

    needed: int
    free: int


class StalePlanError(LattenError):
    """A plan made before the cache's sequences last changed."""


class BusyError(LattenError):
    """The model is at work for another call."""


class TooLargeError(LattenError):
    """A buffer would exceed a limit of the device."""

    what: str
    needed_bytes: int
    limit_bytes: int


class OutOfMemoryError(LattenError, MemoryError):
    """The device ran out of memory."""


class DeviceLostError(LattenError):
    """The device is lost; everything on it is gone."""


class CommandsLostError(LattenError):
    """Commands that were recorded are lost with a batch that the device refused."""

    what: str


class GpuError(LattenError):
    """The device's interface refused a call: a fault of latten or of a driver."""

    context: str


class ConfigError(LattenError):
    """A model's configuration or tokenizer cannot be used."""

    path: str


class WeightsError(LattenError):
    """A model's tensors cannot be used."""

    path: str
    tensor: str


class SavedError(LattenError):
    """A saved cache cannot be loaded."""

    path: str


class GrammarError(LattenError):
    """A grammar cannot be compiled."""


class IoError(LattenError, OSError):
    """A file could not be read or written."""

    path: str
