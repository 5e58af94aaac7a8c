#include "workers.h"

#include <utility>

#include <shunt/layer/matmul.h>

namespace shunt::detail {

Workers::Workers(int threads) {
  for (int worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
}

Workers::~Workers() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  begin_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Workers::run(std::int64_t tasks, const std::function<void(std::int64_t, int)>& task) {
  if (tasks <= 0) return;
  {
    const std::lock_guard lock(mutex_);
    task_ = &task;
    tasks_ = tasks;
    next_ = 0;
    busy_ = threads();
    error_ = nullptr;
    ++round_;
  }
  begin_.notify_all();
  take(0);
  std::unique_lock lock(mutex_);
  end_.wait(lock, [this] { return busy_ == 0; });
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Workers::serve(int worker) {
  const OneThread alone;
  std::uint64_t seen = 0;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      begin_.wait(lock, [this, seen] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
    }
    take(worker);
  }
}

void Workers::take(int worker) {
  while (true) {
    std::int64_t mine = 0;
    {
      const std::lock_guard lock(mutex_);
      if (next_ >= tasks_) {
        if (--busy_ == 0) end_.notify_all();
        return;
      }
      mine = next_++;
    }
    try {
      (*task_)(mine, worker);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_ = tasks_;
    }
  }
}

}  // namespace shunt::detail
