"""The public interface of pplx-kernels, on PyTorch tensors in host memory.

Code written for it runs with the import changed. docs/python.md, "In place of pplx-kernels", says where Shunt is
stricter and where it is more general.
"""

from . import nvshmem
from .all_to_all import AllToAll

__all__ = ["AllToAll", "nvshmem"]
