#pragma once

#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <string>
#include <thread>

#include <shunt/core/error.h>

namespace shunt::multiprocess {

/// Sends this process `signal_number` after `delay` (more than 0), wherever it is then.
template <int signal_number>
void strike_after(std::chrono::microseconds delay) {
  struct sigaction action {};
  action.sa_handler = [](int) { kill(getpid(), signal_number); };
  sigaction(SIGALRM, &action, nullptr);
  const itimerval timer{.it_interval = {},
                        .it_value = {.tv_sec = static_cast<time_t>(delay.count() / 1'000'000),
                                     .tv_usec = static_cast<suseconds_t>(delay.count() % 1'000'000)}};
  setitimer(ITIMER_REAL, &timer, nullptr);
}

/// Letter of a process's state as ps shows it: T stopped, Z ended and not yet waited for; X where it is gone.
[[nodiscard]] inline char process_state(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  if (!std::getline(file, text)) return 'X';
  const auto end = text.rfind(") ");
  return end == std::string::npos ? 'X' : text[end + 2];
}

/// Throws Errc::check_failed where the process is in none of `states` within a minute.
inline void wait_for_state(pid_t pid, const std::string& states) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (states.find(process_state(pid)) == std::string::npos) {
    if (std::chrono::steady_clock::now() > end) {
      throw Error(Errc::check_failed, "process " + std::to_string(pid) + " is in state " +
                                          process_state(pid) + ", expected one of " + states);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

/// Words that the test and all its ranks share, zero at first; apart from the transport under test.
class SharedWords {
 public:
  static constexpr std::size_t kWords = 512;
  SharedWords() {
    void* memory = mmap(nullptr, kWords * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw Error(Errc::unavailable, "no shared page for a test");
    words_ = static_cast<std::int64_t*>(memory);
  }
  ~SharedWords() { munmap(words_, kWords * 8); }
  SharedWords(const SharedWords&) = delete;
  SharedWords& operator=(const SharedWords&) = delete;

  [[nodiscard]] std::atomic_ref<std::int64_t> operator[](std::size_t index) const {
    return std::atomic_ref(words_[index]);
  }
  /// Returns when the word is at least `value`; throws Errc::check_failed after a minute.
  std::int64_t wait_for(std::size_t index, std::int64_t value) const {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    std::int64_t seen = 0;
    while ((seen = (*this)[index].load()) < value) {
      if (std::chrono::steady_clock::now() > end)
        throw Error(Errc::check_failed, "word " + std::to_string(index) + " is " + std::to_string(seen) +
                                            ", expected " + std::to_string(value));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return seen;
  }

 private:
  std::int64_t* words_ = nullptr;
};

}  // namespace shunt::multiprocess
