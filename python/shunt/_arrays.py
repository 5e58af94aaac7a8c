"""Arrays in and out: element types that NumPy or older versions of PyTorch cannot name."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ._errors import InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray[Any, Any] | torch.Tensor"
"""What goes in: anything that speaks DLPack or the buffer protocol; what comes out: one of these two."""

ArrayKind: TypeAlias = Literal["numpy", "ml_dtypes", "torch"]

_FP8 = ("float8_e4m3fn", "float8_e5m2")


def dtype_name(dtype: Any) -> str:
    """The library's name of an element type: "bfloat16" of itself, of ml_dtypes.bfloat16 and of torch.bfloat16."""
    if isinstance(dtype, str):
        return dtype
    text = str(dtype)
    if text.startswith("torch."):
        return text[len("torch.") :]
    return str(np.dtype(dtype).name)


def plain(array: Any, dtype: str = "", what: str = "") -> Any:
    """``array``, or the same memory as integers where DLPack has no name for its elements.

    :param dtype: the type that its elements must have; empty: the caller moves bytes.
    :param what: the name of the argument.
    """
    # Element types that another package has registered, such as those of ml_dtypes.
    if isinstance(array, np.ndarray) and array.dtype.isbuiltin == 2:
        if dtype and array.dtype.name != dtype:
            raise InvalidArgumentError(f"{what} has elements of {array.dtype.name}; {dtype} is needed")
        return array.view(f"u{array.dtype.itemsize}")
    return array


def rows_in(*arrays: Any) -> int:
    """How many rows the first array has that says so; 0 where none does. Arrays of one call have equally many."""
    for one in arrays:
        shape = getattr(one, "shape", None)
        if shape:
            return int(shape[0])
    for one in arrays:
        if hasattr(one, "__dlpack__"):
            with contextlib.suppress(Exception):  # NumPy has no name for some elements
                return len(np.from_dlpack(one))
    return 0


def check_kind(kind: str) -> None:
    """Says at once what will be missing later."""
    if kind not in ("numpy", "ml_dtypes", "torch"):
        raise InvalidArgumentError(f'arrays is "{kind}"; allowed are numpy, ml_dtypes, torch')
    if kind == "numpy":
        return
    try:
        __import__(kind)
    except ImportError as error:
        raise UnavailableError(f'arrays is "{kind}", but that package cannot be imported: {error}') from None


def named(array: Any, dtype: str, kind: ArrayKind) -> Any:
    """A view that the extension module made, with elements of ``dtype`` where ``kind`` knows them."""
    if kind == "ml_dtypes" and dtype in ("bfloat16", *_FP8):
        import ml_dtypes

        return array.view(getattr(ml_dtypes, dtype))
    if kind == "torch" and dtype in _FP8:
        import torch

        if hasattr(torch, dtype):
            return array.view(getattr(torch, dtype))
    return array


def zeros(shape: tuple[int, ...], dtype: str, kind: ArrayKind) -> Any:
    """A new array of the caller's kind."""
    if kind == "torch":
        import torch

        return torch.zeros(shape, dtype=getattr(torch, dtype))
    if dtype != "bfloat16":
        return np.zeros(shape, dtype)
    return named(np.zeros(shape, np.uint16), dtype, kind)
