"""The definitions of the kernels: float64, on the host, slow and exact."""

from ._latten import reference as _own

decode = _own.decode
append = _own.append
round_to = _own.round_to
merge = _own.merge
rope = _own.rope
rms_norm = _own.rms_norm
linear = _own.linear
swiglu = _own.swiglu
sample = _own.sample

__all__ = ["append", "decode", "linear", "merge", "rms_norm", "rope", "round_to", "sample", "swiglu"]
