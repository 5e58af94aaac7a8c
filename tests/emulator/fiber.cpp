#include "fiber.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHUNT_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SHUNT_ASAN 1
#endif
#if defined(SHUNT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// swapcontext() asks the kernel for the signal mask at every switch, which makes it fifty times slower than this. What a
// called function must keep is pushed, the stacks are exchanged, and it is popped again.
extern "C" void shunt_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl shunt_emulator_switch
.hidden shunt_emulator_switch
.type shunt_emulator_switch, @function
shunt_emulator_switch:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shunt_emulator_switch, .-shunt_emulator_switch
)");
#else
#include <ucontext.h>
#endif

namespace shunt::emulator {
namespace {

constexpr std::size_t kStackBytes = std::size_t{256} << 10U;
constexpr std::size_t kGuardBytes = std::size_t{64} << 10U;  // a page of every kernel

/// The fiber that is being started, since an entry has no arguments where stacks are exchanged by hand.
Fiber* starting = nullptr;

#if defined(__x86_64__)
void switch_to(void** save, void* load) {
  shunt_emulator_switch(save, load);
}

void* first_state(FiberStack& stack, void (*begin)()) {
  auto* top = reinterpret_cast<std::uintptr_t*>(stack.bottom() + FiberStack::size());
  *--top = 0;  // where begin() would return to; also makes its frame 16-byte aligned as after a call
  *--top = reinterpret_cast<std::uintptr_t>(begin);
  for (int i = 0; i < 6; ++i) *--top = 0;
  return top;
}
#else
void switch_to(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

/// Lies at the bottom of the stack that it describes, which the frames never reach: the guard page is below it.
void* first_state(FiberStack& stack, void (*begin)()) {
  auto* context = new (stack.bottom()) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack.bottom() + sizeof(ucontext_t);
  context->uc_stack.ss_size = FiberStack::size() - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, begin, 0);
  return context;
}
#endif

}  // namespace

FiberStack::FiberStack()
    : mapping_(mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
  if (mapping_ == MAP_FAILED || mprotect(mapping_, kGuardBytes, PROT_NONE) != 0)
    throw std::runtime_error(std::string("no memory for the stack of one more emulated thread: ") +
                             std::strerror(errno));
}

FiberStack::~FiberStack() {
#if defined(SHUNT_ASAN)
  __asan_unpoison_memory_region(bottom(), kStackBytes);
#endif
  munmap(mapping_, kStackBytes + kGuardBytes);
}

std::byte* FiberStack::bottom() const noexcept {
  return static_cast<std::byte*>(mapping_) + kGuardBytes;
}

std::size_t FiberStack::size() noexcept {
  return kStackBytes;
}

void Fiber::prepare(FiberStack& stack, Entry entry, void* argument) {
#if defined(SHUNT_ASAN)
  // Frames of a fiber that was dropped are still marked.
  __asan_unpoison_memory_region(stack.bottom(), FiberStack::size());
#endif
  stack_ = &stack;
  entry_ = entry;
  argument_ = argument;
  ended_ = false;
  own_frames_ = nullptr;
  own_ = first_state(stack, [] { begin(starting); });
}

void Fiber::begin(Fiber* self) {
#if defined(SHUNT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_bottom_, &self->caller_size_);
#endif
  self->entry_(self->argument_);
  self->ended_ = true;
#if defined(SHUNT_ASAN)
  __sanitizer_start_switch_fiber(nullptr, self->caller_bottom_, self->caller_size_);
#endif
  switch_to(&self->own_, self->caller_);
}

void Fiber::resume() {
  starting = this;
#if defined(SHUNT_ASAN)
  __sanitizer_start_switch_fiber(&caller_frames_, stack_->bottom(), FiberStack::size());
#endif
  switch_to(&caller_, own_);
#if defined(SHUNT_ASAN)
  __sanitizer_finish_switch_fiber(caller_frames_, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
#if defined(SHUNT_ASAN)
  __sanitizer_start_switch_fiber(&own_frames_, caller_bottom_, caller_size_);
#endif
  switch_to(&own_, caller_);
#if defined(SHUNT_ASAN)
  __sanitizer_finish_switch_fiber(own_frames_, &caller_bottom_, &caller_size_);
#endif
}

}  // namespace shunt::emulator
