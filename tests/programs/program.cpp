#include "programs/program.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>

#include <fmt/format.h>

#include <shunt/core/child.h>
#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>

namespace shunt::programs {
namespace {

constexpr std::int32_t kLocalRanks = 4;

[[noreturn]] void refuse(const std::string& text) {
  throw Error(Errc::invalid_argument, text + " (--help lists what is allowed)");
}

template <class Number>
Number parse(std::string_view option, std::string_view text, Number least, Number most) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < least || value > most)
    refuse(fmt::format("{}: \"{}\"; {} to {} is allowed", option, text, least, most));
  return value;
}

struct Option {
  const char* name;
  const char* value;  ///< Empty: a flag
  const char* help;
  bool of_benchmark;
  std::function<void(std::string_view)> take;
};

std::vector<Option> options_of(Options& o) {
  const auto whole = [](const char* name, auto& to, std::int64_t least, std::int64_t most) {
    return [name, &to, least, most](std::string_view text) {
      to = static_cast<std::remove_reference_t<decltype(to)>>(parse<std::int64_t>(name, text, least, most));
    };
  };
  const auto mode = [&o](std::string_view text) {
    if (text != "processes" && text != "threads")
      refuse(fmt::format("--rank-mode: \"{}\"; processes or threads is allowed", text));
    o.launch.mode = text == "threads" ? RankMode::threads : RankMode::processes;
  };
  const auto device = [&o](std::string_view text) {
    if (text != "auto" && text != "cpu" && text != "cuda")
      refuse(fmt::format("--device: \"{}\"; auto, cpu or cuda is allowed", text));
    o.device = text;
  };
  return {
      {"--ranks", "N",
       "ranks on this machine (default 4, or those of mpirun, srun, torchrun, MASTER_ADDR ...)", false,
       whole("--ranks", o.launch.ranks, 1, 1024)},
      {"--rank-mode", "MODE", "processes (default) or threads, of ranks that this program starts", false,
       mode},
      {"--transport", "NAME", "of the CPU's ranks (default auto; shunt doctor lists them)", false,
       [&o](std::string_view text) { o.launch.transport = text; }},
      {"--device", "NAME", "cpu, cuda, or auto (default): both, cuda where there is one", false, device},
      {"--only", "TEXT", "only what has TEXT in its name", false,
       [&o](std::string_view text) { o.only = text; }},
      {"--list", "", "print the names and end", false, [&o](std::string_view) { o.list = true; }},
      {"--warmup", "N", "untimed runs of a point (default 10)", true,
       whole("--warmup", o.warmup, 0, 100'000)},
      {"--runs", "N", "timed runs of a point (default 10)", true, whole("--runs", o.runs, 1, 100'000)},
      {"--samples", "N", "steps in a run (default 10)", true, whole("--samples", o.samples, 1, 10'000)},
      {"--max-seconds", "SECONDS", "for one point; then fewer runs are taken (default 5)", true,
       [&o](std::string_view text) { o.max_seconds = parse("--max-seconds", text, 0.01, 1e6); }},
      {"--dp-size", "N", "consecutive ranks that bring the same tokens (default 1)", true,
       whole("--dp-size", o.dp_size, 1, 1024)},
      {"--full-tokens", "", "every rank brings all the tokens of a point, not 1 to that many at random", true,
       [&o](std::string_view) { o.full_tokens = true; }},
      {"--tsv", "FILE", "table in the columns of pplx-kernels; never overwritten", true,
       [&o](std::string_view text) { o.tsv = text; }},
  };
}

void print_help(const char* program, bool benchmark, const std::vector<Option>& options) {
  fmt::print(
      "usage: {} [options]\n{}\n\n", program,
      benchmark
          ? "Times dispatch and combine at the points of pplx-kernels' C++ benchmark. Ends with 0, 1 or 2 "
            "(wrong options, or something is missing)."
          : "Tests dispatch and combine, every element compared with a reference. Ends with 0 (all passed), "
            "1 "
            "(a case failed) or 2 (wrong options, or something is missing).");
  for (const Option& option : options) {
    if (!benchmark && option.of_benchmark) continue;
    fmt::print("  {:24}{}\n", fmt::format("{} {}", option.name, option.value), option.help);
  }
}

}  // namespace

bool read_options(int argc, char** argv, bool benchmark, Options& options) {
  const std::vector<Option> known = options_of(options);
  for (int i = 1; i < argc; ++i) {
    std::string_view given = argv[i];
    if (given == "--help" || given == "-h") {
      print_help(argv[0], benchmark, known);
      return false;
    }
    const std::size_t equals = given.find('=');
    const std::string_view name = given.substr(0, equals);
    const auto found =
        std::find_if(known.begin(), known.end(), [&](const Option& option) { return name == option.name; });
    if (found == known.end() || (found->of_benchmark && !benchmark))
      refuse(fmt::format("\"{}\" is no option", given));
    if (*found->value == '\0') {
      if (equals != std::string_view::npos) refuse(fmt::format("{} takes no value", name));
      found->take({});
    } else if (equals != std::string_view::npos) {
      found->take(given.substr(equals + 1));
    } else if (i + 1 < argc) {
      found->take(argv[++i]);
    } else {
      refuse(fmt::format("{} wants a value ({})", name, found->value));
    }
  }
  return true;
}

Launch find_launch(Options& options) {
  Launch launch =
      detect_launch(options.launch.ranks, [](const char* name) -> const char* { return std::getenv(name); });
  if (launch.way == LaunchWay::local && options.launch.ranks == 0) options.launch.ranks = kLocalRanks;
  return launch;
}

std::string describe_launch(const LaunchSession& session, const Options& options) {
  switch (session.way()) {
    case LaunchWay::local:
      return fmt::format("{} local {}", options.launch.ranks,
                         options.launch.mode == RankMode::threads ? "threads" : "processes");
    case LaunchWay::mpi:
      return fmt::format("{} ranks of an MPI launcher", session.world_size());
    case LaunchWay::node:
    case LaunchWay::rank:
      break;
  }
  return fmt::format("{} ranks of the job that the environment describes", session.world_size());
}

void prepare_cuda() {
  // Ranks that are threads share a GPU's queues, by default fewer than they need: a rank's copies must not stand behind
  // another one's kernel that waits for them.
  static_cast<void>(setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0));
  // A kernel loaded late waits for the device, where another rank's kernel may wait for this one.
  static_cast<void>(setenv("CUDA_MODULE_LOADING", "EAGER", 0));
}

std::string gpu_reason(const Options& options) {
  if (options.device == "cpu") return "--device cpu";
  // In a child: ranks that use CUDA are to be forked from this process.
  return ask_in_child(cuda::unavailable_reason, std::chrono::seconds(60))
      .value_or("asking the CUDA driver crashes or takes longer than 60 s");
}

int report_error(const char* program, const std::exception& error) {
  std::fflush(stdout);
  fmt::print(stderr, "{}: {}\n", program, error.what());
  const auto* known = dynamic_cast<const Error*>(&error);
  return known == nullptr ? 1 : exit_status(known->code());
}

}  // namespace shunt::programs
