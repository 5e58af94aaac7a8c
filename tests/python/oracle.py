"""What dispatch and combine must give, in plain Python and double precision, written apart from the library."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def experts_of(rank: int, experts: int, ranks: int) -> range:
    """Consecutive experts, as even as possible; the first ranks own one more."""
    share, extra = divmod(experts, ranks)
    first = rank * share + min(rank, extra)
    return range(first, first + share + (rank < extra))


def rows_for(expert: int, ids: list[Array]) -> list[tuple[int, int]]:
    """(group, token) of every row of an expert, in the order of the contract; ids: those of each group."""
    return [(group, token) for group, one in enumerate(ids) for token in range(len(one)) if expert in one[token]]


def combined(tokens: Array, ids: Array, weights: Array, factor: Any) -> Array:
    """[T, H] the weighted sum where expert e gives factor(e) * token."""
    out = np.zeros(tokens.shape, np.float64)
    for t in range(len(ids)):
        for k, expert in enumerate(ids[t]):
            if expert >= 0:
                out[t] += np.float64(weights[t, k]) * factor(int(expert)) * tokens[t].astype(np.float64)
    return out


def bf16_bits(values: Array) -> Array:
    """Round to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def from_bf16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_e4m3(bits: Array) -> Array:
    """float8_e4m3fn to float32."""
    bits = bits.astype(np.int32)
    sign = np.where(bits & 0x80, -1.0, 1.0)
    exponent = (bits >> 3) & 15
    fraction = bits & 7
    value = np.where(exponent == 0, fraction / 8.0 * 2.0**-6, (1 + fraction / 8.0) * 2.0 ** (exponent - 7.0))
    value = np.where((bits & 0x7F) == 0x7F, np.nan, value)
    return (sign * value).astype(np.float32)
