#include "team.h"

namespace shunt::bench {

Team::Team(std::int32_t size) {
  for (std::int32_t part = 1; part < size; ++part) others_.emplace_back([this, part] { work(part); });
}

Team::~Team() {
  body_ = nullptr;
  call_.fetch_add(1, std::memory_order_release);
  call_.notify_all();
  for (std::thread& other : others_) other.join();
}

void Team::run(const std::function<void(std::int32_t)>& body) {
  if (others_.empty()) return body(0);
  body_ = &body;
  busy_.store(static_cast<std::int32_t>(others_.size()), std::memory_order_relaxed);
  call_.fetch_add(1, std::memory_order_release);
  call_.notify_all();
  body(0);
  for (std::int32_t left = busy_.load(std::memory_order_acquire); left > 0;
       left = busy_.load(std::memory_order_acquire))
    busy_.wait(left, std::memory_order_acquire);
}

void Team::share(std::int64_t count,
                 const std::function<void(std::int32_t part, std::int64_t from, std::int64_t to)>& body) {
  const std::int64_t parts = size();
  run([&](std::int32_t part) { body(part, count * part / parts, count * (part + 1) / parts); });
}

void Team::work(std::int32_t part) {
  for (std::uint32_t seen = 0;;) {
    call_.wait(seen, std::memory_order_acquire);
    seen = call_.load(std::memory_order_acquire);
    if (body_ == nullptr) return;
    (*body_)(part);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

}  // namespace shunt::bench
