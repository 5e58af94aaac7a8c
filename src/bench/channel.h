#pragma once

#include <string>

namespace shunt::bench {

/// An anonymous file through which rank 0, a forked child or a thread, hands bytes to the process that
/// started it.
class Channel {
 public:
  Channel();
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  void write(const std::string& bytes) const;
  [[nodiscard]] std::string read() const;

 private:
  int file_;
};

}  // namespace shunt::bench
