#pragma once

/// SHUNT_HOST_DEVICE marks arithmetic that the CPU and a GPU share, SHUNT_DEVICE what only kernels call. Without nvcc
/// both are ordinary functions, so that every kernel also compiles for the emulator in tests/emulator.
/// SHUNT_UNROLL before a loop over registers keeps them registers.
#if defined(__CUDACC__)
#define SHUNT_HOST_DEVICE __host__ __device__
#define SHUNT_DEVICE __device__ __forceinline__
#define SHUNT_UNROLL _Pragma("unroll")
#else
#define SHUNT_HOST_DEVICE
#define SHUNT_DEVICE inline
#define SHUNT_UNROLL
#endif
