"""Attention over a small, paged KV cache (GQA, GTA, GLA, MLA), and language models over it, on any GPU.

Arrays are numpy's, or any library's by DLPack on the host; results are numpy's, which other libraries take by `from_dlpack`.
"""

from __future__ import annotations

import atexit
from pathlib import Path

from . import errors, reference
from ._latten import (
    Decode,
    Generation,
    Gpu,
    HeadLayout,
    Model,
    PagedKvCache,
    Plan,
    Rope,
    Sequence,
    Token,
    __version__,
    _finish,
)
from .errors import LattenError

__all__ = [
    "Decode",
    "Generation",
    "Gpu",
    "HeadLayout",
    "LattenError",
    "Model",
    "PagedKvCache",
    "Plan",
    "Rope",
    "SHIPPED",
    "Sequence",
    "Token",
    "__version__",
    "errors",
    "reference",
    "shipped",
]

# What threads compute ends before the driver's own end of the program.
atexit.register(_finish)

#: The small models that come with this package, one per variant of attention. They continue texts, byte by byte.
SHIPPED = ("gqa", "gta", "gla", "mla")


def shipped(variant: str) -> Path:
    """The folder of a shipped model, for `Model.load`.

    Raises `errors.ArgumentError` for another name, `errors.IoError` where the package was built without models.
    """
    if variant not in SHIPPED:
        error = errors.ArgumentError(f"variant: {variant!r} is not {', '.join(SHIPPED)}")
        error.name = "variant"
        raise error
    folder = Path(__file__).parent / "models" / variant
    if not folder.is_dir():
        missing = errors.IoError(f"{folder}: this package was built without its models")
        missing.path = str(folder)
        raise missing
    return folder
