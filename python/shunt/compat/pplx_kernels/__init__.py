"""The public interface of pplx-kernels, on PyTorch tensors: in host memory, and on GPUs where the world is there.

Code written for it runs with the import changed. docs/python.md, "In place of pplx-kernels", says where Shunt is
stricter and where it is more general.
"""

from . import nvshmem
from .all_to_all import AllToAll
from .nvshmem import (
    nvshmem_alloc_empty_unique_id,
    nvshmem_alltoall,
    nvshmem_barrier_all,
    nvshmem_barrier_all_on_current_stream,
    nvshmem_finalize,
    nvshmem_get_unique_id,
    nvshmem_init,
    nvshmem_my_pe,
    nvshmem_n_pes,
    nvshmem_unique_id_size,
)

__all__ = [
    "AllToAll",
    "nvshmem",
    "nvshmem_alloc_empty_unique_id",
    "nvshmem_alltoall",
    "nvshmem_barrier_all",
    "nvshmem_barrier_all_on_current_stream",
    "nvshmem_finalize",
    "nvshmem_get_unique_id",
    "nvshmem_init",
    "nvshmem_my_pe",
    "nvshmem_n_pes",
    "nvshmem_unique_id_size",
]
