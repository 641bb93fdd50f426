"""The definitions of the kernels: float64, on the host, slow and exact."""

from typing import Any, Literal, Protocol, Tuple, Union
from typing import Sequence as ListOf

import numpy as np
import numpy.typing as npt

from ._latten import HeadLayout, Rope

__all__ = ["append", "decode", "linear", "merge", "rms_norm", "rope", "round_to", "sample", "swiglu"]

class _OnHost(Protocol):
    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> Tuple[Any, int]: ...

_F64 = Union[npt.NDArray[np.float64], _OnHost]
_Array = npt.NDArray[np.float64]

def decode(
    heads: HeadLayout,
    q: _F64,
    states: _F64,
    rope_keys: _F64,
    *,
    softmax_scale: float,
    causal: bool = True,
    softcap: float | None = None,
    window: int | None = None,
    keep_first: int = 0,
    sinks: _F64 | None = None,
) -> Tuple[_Array, _Array]:
    """One sequence. `q`: (tokens, q_heads, q_dim); `states`: (kv_len, groups, state_dim); `rope_keys`: (kv_len, rope_dim)."""

def append(heads: HeadLayout, kv: _F64, positions: ListOf[int], rope: Rope) -> _Array:
    """Rows (tokens, kv_dim) as a cache holds them, rotated to their positions."""

def round_to(heads: HeadLayout, kv: _F64, dtype: Literal["i8", "i4"]) -> _Array:
    """Rows (tokens, kv_dim) as a cache of integers holds them."""

def merge(partials: ListOf[Tuple[_F64, _F64]]) -> Tuple[_Array, _Array]:
    """Joins results over disjoint tokens: (tokens, q_heads, v_dim) and (tokens, q_heads) each."""

def rope(x: _F64, positions: ListOf[int], rope: Rope) -> _Array:
    """(tokens, heads, rope_dim) rotated to positions."""

def rms_norm(x: _F64, gain: _F64, *, eps: float = 1e-5) -> _Array: ...
def linear(x: _F64, weight: _F64, bias: _F64 | None = None) -> _Array: ...
def swiglu(gate_up: _F64) -> _Array: ...
def sample(logits: _F64, *, temperature: float = 0.0, top_p: float = 1.0, u: float = 0.0) -> int: ...
