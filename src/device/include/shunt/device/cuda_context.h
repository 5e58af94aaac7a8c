#pragma once

/// The kernel context on a GPU. Nothing of it exists outside of nvcc.
#if defined(__CUDACC__)

#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>
#include <shunt/device/word16.h>

namespace shunt::device {

/// Elements of the block's shared memory.
template <class T>
class CudaShared {
 public:
  SHUNT_DEVICE explicit CudaShared(T* data) : data_(data) {}
  SHUNT_DEVICE T load(std::int32_t i) const { return data_[i]; }
  SHUNT_DEVICE void store(std::int32_t i, T value) { data_[i] = value; }

 private:
  T* data_;
};

/// See KernelContext. Every operation is one instruction or a few, inlined; the object is empty.
class CudaContext {
 public:
  SHUNT_DEVICE std::int32_t thread() const { return static_cast<std::int32_t>(threadIdx.x); }
  SHUNT_DEVICE std::int32_t num_threads() const { return static_cast<std::int32_t>(blockDim.x); }
  SHUNT_DEVICE std::int32_t block() const { return static_cast<std::int32_t>(blockIdx.x); }
  SHUNT_DEVICE std::int32_t num_blocks() const { return static_cast<std::int32_t>(gridDim.x); }
  SHUNT_DEVICE std::int32_t lane() const { return static_cast<std::int32_t>(threadIdx.x % 32); }
  SHUNT_DEVICE std::int32_t warp() const { return static_cast<std::int32_t>(threadIdx.x / 32); }

  SHUNT_DEVICE void sync_block() { __syncthreads(); }
  SHUNT_DEVICE void sync_warp() { __syncwarp(); }
  template <class T>
  SHUNT_DEVICE T shuffle(T value, std::int32_t lane) {
    return __shfl_sync(kAll, value, lane);
  }
  template <class T>
  SHUNT_DEVICE T shuffle_xor(T value, std::int32_t mask) {
    return __shfl_xor_sync(kAll, value, mask);
  }
  template <class T>
  SHUNT_DEVICE T shuffle_up(T value, std::int32_t distance) {
    return __shfl_up_sync(kAll, value, static_cast<unsigned>(distance));
  }
  SHUNT_DEVICE std::uint32_t ballot(bool value) { return __ballot_sync(kAll, value); }
  SHUNT_DEVICE std::uint32_t match_any(std::int32_t value) { return __match_any_sync(kAll, value); }

  template <class T>
  SHUNT_DEVICE CudaShared<T> shared(std::int32_t offset_bytes, std::int32_t /*count*/) {
    extern __shared__ Word16 shunt_shared_memory[];
    return CudaShared<T>(reinterpret_cast<T*>(reinterpret_cast<char*>(shunt_shared_memory) + offset_bytes));
  }

  SHUNT_DEVICE Word16 load16(const void* at) { return *static_cast<const Word16*>(at); }
  SHUNT_DEVICE void store16(void* at, const Word16& value) { *static_cast<Word16*>(at) = value; }
  SHUNT_DEVICE Word16 load16_once(const void* at) {
    Word16 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.word[0]), "=r"(value.word[1]), "=r"(value.word[2]), "=r"(value.word[3])
                 : "l"(__cvta_generic_to_global(at))
                 : "memory");
    return value;
  }
  SHUNT_DEVICE void store16_once(void* at, const Word16& value) {
    asm volatile(
        "st.global.L1::no_allocate.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)),
        "r"(value.word[0]), "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3])
        : "memory");
  }

  SHUNT_DEVICE std::uint32_t load_relaxed(Scope scope, const std::uint32_t* at) {
    std::uint32_t value;
    if (scope == Scope::system)
      asm volatile("ld.relaxed.sys.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    else
      asm volatile("ld.relaxed.gpu.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
  }
  SHUNT_DEVICE std::uint64_t load_relaxed(Scope scope, const std::uint64_t* at) {
    std::uint64_t value;
    if (scope == Scope::system)
      asm volatile("ld.relaxed.sys.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    else
      asm volatile("ld.relaxed.gpu.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
  }
  SHUNT_DEVICE std::uint32_t load_acquire(Scope scope, const std::uint32_t* at) {
    std::uint32_t value;
    if (scope == Scope::system)
      asm volatile("ld.acquire.sys.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    else
      asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
  }
  SHUNT_DEVICE std::uint64_t load_acquire(Scope scope, const std::uint64_t* at) {
    std::uint64_t value;
    if (scope == Scope::system)
      asm volatile("ld.acquire.sys.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    else
      asm volatile("ld.acquire.gpu.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
    return value;
  }
  SHUNT_DEVICE void store_relaxed(Scope scope, std::uint32_t* at, std::uint32_t value) {
    if (scope == Scope::system)
      asm volatile("st.relaxed.sys.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
    else
      asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
  }
  SHUNT_DEVICE void store_relaxed(Scope scope, std::uint64_t* at, std::uint64_t value) {
    if (scope == Scope::system)
      asm volatile("st.relaxed.sys.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
    else
      asm volatile("st.relaxed.gpu.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
  }
  SHUNT_DEVICE void store_release(Scope scope, std::uint32_t* at, std::uint32_t value) {
    if (scope == Scope::system)
      asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
    else
      asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
  }
  SHUNT_DEVICE void store_release(Scope scope, std::uint64_t* at, std::uint64_t value) {
    if (scope == Scope::system)
      asm volatile("st.release.sys.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
    else
      asm volatile("st.release.gpu.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
  }
  SHUNT_DEVICE std::uint32_t fetch_add(Scope scope, std::uint32_t* at, std::uint32_t value) {
    std::uint32_t old;
    if (scope == Scope::system)
      asm volatile("atom.acq_rel.sys.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(at), "r"(value) : "memory");
    else
      asm volatile("atom.acq_rel.gpu.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(at), "r"(value) : "memory");
    return old;
  }
  SHUNT_DEVICE std::uint64_t fetch_add(Scope scope, std::uint64_t* at, std::uint64_t value) {
    std::uint64_t old;
    if (scope == Scope::system)
      asm volatile("atom.acq_rel.sys.add.u64 %0, [%1], %2;" : "=l"(old) : "l"(at), "l"(value) : "memory");
    else
      asm volatile("atom.acq_rel.gpu.add.u64 %0, [%1], %2;" : "=l"(old) : "l"(at), "l"(value) : "memory");
    return old;
  }
  SHUNT_DEVICE std::uint64_t compare_exchange(Scope scope, std::uint64_t* at, std::uint64_t expected,
                                              std::uint64_t desired) {
    std::uint64_t old;
    if (scope == Scope::system)
      asm volatile("atom.acq_rel.sys.cas.b64 %0, [%1], %2, %3;"
                   : "=l"(old)
                   : "l"(at), "l"(expected), "l"(desired)
                   : "memory");
    else
      asm volatile("atom.acq_rel.gpu.cas.b64 %0, [%1], %2, %3;"
                   : "=l"(old)
                   : "l"(at), "l"(expected), "l"(desired)
                   : "memory");
    return old;
  }
  SHUNT_DEVICE void fence(Scope scope) {
    if (scope == Scope::system)
      __threadfence_system();
    else
      __threadfence();
  }

  SHUNT_DEVICE std::uint64_t clock_ns() {
    std::uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
  }
  SHUNT_DEVICE void pause() { __nanosleep(64); }

 private:
  static constexpr unsigned kAll = 0xffffffffU;
};

}  // namespace shunt::device

#endif  // __CUDACC__
