from os import PathLike
from types import TracebackType
from typing import Any, Iterator, Literal, Protocol, Tuple, Union, final
from typing import Sequence as ListOf

import numpy as np
import numpy.typing as npt

from . import reference as reference

__all__ = [
    "Decode",
    "Generation",
    "Gpu",
    "HeadLayout",
    "Model",
    "PagedKvCache",
    "Plan",
    "Rope",
    "Sequence",
    "Token",
    "__version__",
    "_finish",
    "reference",
]

class _OnHost(Protocol):
    """An array of another library, by DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> Tuple[Any, int]: ...

_F32 = Union[npt.NDArray[np.float32], _OnHost]
_CacheType = Literal["f32", "f16", "bf16", "i8", "i4"]
_WeightType = Literal["f32", "f16", "i8", "q8_0", "q4_0"]
_Text = Union[str, ListOf[int]]

__version__: str

def _finish() -> None: ...
@final
class Gpu:
    """A GPU, or a software one where there is no other.

    `adapter`: a part of its name. `tier`: the highest tier of kernels, "portable", "subgroup" or "matrix" (which must be asked for).
    Raises `NoAdapterError`, `UnsupportedError`.
    """

    def __new__(cls, *, adapter: str | None = None, tier: Literal["portable", "subgroup", "matrix"] | None = None) -> Gpu: ...
    @staticmethod
    def shared() -> Gpu:
        """The one that calls without `gpu` take, opened by the first of them."""

    @property
    def adapter(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def tier(self) -> str: ...
    @property
    def is_software(self) -> bool: ...

@final
class HeadLayout:
    """A variant of attention in numbers. Raises `ArgumentError` for numbers that make none."""

    @staticmethod
    def gqa(*, q_heads: int, kv_heads: int, head_dim: int) -> HeadLayout:
        """State: key, rotated, and value of each KV head."""

    @staticmethod
    def gta(*, q_heads: int, kv_heads: int, head_dim: int, rope_dim: int) -> HeadLayout:
        """State: what is key and value of each KV head; one rotated key for all."""

    @staticmethod
    def gla(*, q_heads: int, latent_heads: int, latent_dim: int, rope_dim: int) -> HeadLayout:
        """State: the latents, after their norm; one rotated key for all. Queries are absorbed."""

    @staticmethod
    def mla(*, q_heads: int, latent_dim: int, rope_dim: int) -> HeadLayout:
        """`gla` with one latent."""

    @property
    def q_heads(self) -> int: ...
    @property
    def groups(self) -> int: ...
    @property
    def heads_per_group(self) -> int: ...
    @property
    def state_dim(self) -> int: ...
    @property
    def nope_dim(self) -> int: ...
    @property
    def rope_dim(self) -> int: ...
    @property
    def rotated_dim(self) -> int: ...
    @property
    def v_offset(self) -> int: ...
    @property
    def v_dim(self) -> int: ...
    @property
    def q_dim(self) -> int: ...
    @property
    def kv_dim(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Rope:
    """How rows are rotated to their positions: `theta ** (-2 i / rope_dim)` radians per position of pair `i`."""

    def __new__(cls, rope_dim: int, theta: float = 10_000.0, pairs: Literal["half", "interleaved"] = "half") -> Rope: ...
    @property
    def rope_dim(self) -> int: ...
    @property
    def theta(self) -> float: ...
    @property
    def pairs(self) -> str: ...

@final
class Sequence:
    """A sequence of a cache."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class PagedKvCache:
    """Pages on the device, page tables on the host. A step: `reserve`, per layer `append` and `Decode.run`, `commit`.

    `pages` of `page_size` tokens (a power of two) in each of `layers`. With `rope` the cache rotates keys as they are appended.
    """

    def __new__(
        cls,
        heads: HeadLayout,
        *,
        dtype: _CacheType = "f16",
        pages: int = 64,
        page_size: int = 64,
        layers: int = 1,
        rope: Rope | None = None,
        grows: bool = False,
        gpu: Gpu | None = None,
    ) -> PagedKvCache: ...
    def insert(self) -> Sequence: ...
    def remove(self, sequence: Sequence) -> None: ...
    def fork(self, sequence: Sequence) -> Sequence:
        """A sequence that shares this one's pages."""

    def truncate(self, sequence: Sequence, len: int) -> None: ...
    def len(self, sequence: Sequence) -> int:
        """Committed tokens."""

    def reserve(self, sequences: ListOf[Sequence], tokens: int) -> None:
        """Room for so many tokens more in each, or `CacheFullError`, and nothing is changed."""

    def reserve_each(self, wanted: ListOf[Tuple[Sequence, int]]) -> None: ...
    def commit(self, sequences: ListOf[Sequence], tokens: int) -> None:
        """Keeps the first so many reserved tokens of each."""

    def append(self, sequences: ListOf[Sequence], kv: _F32, *, layer: int = 0) -> None:
        """Writes the reserved tokens, one sequence after the other: `(tokens, kv_dim)` float32, states and then the rope key."""

    def cos_sin(self, sequences: ListOf[Sequence]) -> npt.NDArray[np.float32]:
        """`(tokens, pairs, 2)`: cosines and sines at the positions of the reserved tokens."""

    @property
    def heads(self) -> HeadLayout: ...
    @property
    def dtype(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def token_bytes(self) -> int:
        """Of one token over all layers."""

    @property
    def pool_bytes(self) -> int: ...
    def stats(self) -> dict[str, int]:
        """Pages (total, used, shared, free), and the bytes of those in use."""

@final
class Plan:
    """Which workgroup reads which tokens. Stale when a sequence of the cache changes."""

    @property
    def tokens(self) -> int: ...
    @property
    def workgroups(self) -> int: ...
    @property
    def is_split(self) -> bool: ...

@final
class Decode:
    """Attention of the reserved tokens of sequences over all that they see: one token each (decode) or many (prefill)."""

    def __new__(
        cls,
        heads: HeadLayout,
        *,
        dtype: _CacheType = "f16",
        softcap: float | None = None,
        window: int | None = None,
        keep_first: int = 0,
        sinks: bool = False,
        gpu: Gpu | None = None,
    ) -> Decode: ...
    @property
    def heads(self) -> HeadLayout: ...
    def plan(self, cache: PagedKvCache, sequences: ListOf[Sequence]) -> Plan: ...
    def run(
        self,
        plan: Plan,
        cache: PagedKvCache,
        q: _F32,
        *,
        softmax_scale: float,
        layer: int = 0,
        sinks: _F32 | None = None,
    ) -> Tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """`q`: `(tokens, q_heads, q_dim)` float32. Returns `(tokens, q_heads, v_dim)` and the log-sum-exps `(tokens, q_heads)`."""

@final
class Token:
    """A token, and the text that is complete with it (maybe none)."""

    @property
    def id(self) -> int: ...
    @property
    def text(self) -> str: ...

@final
class Generation:
    """Tokens as they are computed. The model is busy until the last one is taken, or `close`."""

    def __iter__(self) -> Iterator[Token]: ...
    def __next__(self) -> Token: ...
    def __enter__(self) -> Generation: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
    def read(self) -> str:
        """Takes all tokens: the whole text."""

    def close(self) -> None:
        """Stops, and waits until the model is free."""

    @property
    def text(self) -> str:
        """Of the tokens that were taken."""

    @property
    def tokens(self) -> list[int]: ...

@final
class Model:
    """A decoder with its tokenizer and a cache. Texts are `str` or tokens."""

    @staticmethod
    def load(
        path: str | PathLike[str],
        *,
        weights: _WeightType = "f16",
        cache: _CacheType = "f16",
        cache_tokens: int | None = None,
        chunk: int = 128,
        window: int | None = None,
        gpu: Gpu | None = None,
    ) -> Model:
        """A folder of the transformers library or of latten (`latten.shipped`), or a GGUF file.

        Raises `IoError`, `ConfigError`, `WeightsError`, `TooLargeError`, `OutOfMemoryError`.
        """

    @property
    def name(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def layers(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def cache_tokens(self) -> int: ...
    @property
    def heads(self) -> HeadLayout: ...
    @property
    def end_tokens(self) -> list[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: ListOf[int]) -> str: ...
    def generate(
        self,
        prompt: _Text,
        *,
        max_tokens: int = 100,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repetition: float = 1.0,
        presence: float = 0.0,
        frequency: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Begins to continue a prompt; greedy by default. Raises `BusyError` while another generation goes on."""

    def logits(self, text: _Text) -> npt.NDArray[np.float32]:
        """`(tokens, vocab_size)`, after each token."""

    def losses(self, text: _Text) -> npt.NDArray[np.float64]:
        """`(tokens - 1,)`: minus the natural log of the probability of each token but the first."""

    def perplexity(self, text: _Text) -> float:
        """The exponential of the mean of `losses`."""
