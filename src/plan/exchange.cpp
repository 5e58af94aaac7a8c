#include <shunt/plan/exchange.h>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/plan/memory.h>

#include "kernels.h"

namespace shunt::plan {
namespace {

constexpr double kDeepEpScaleUpShare = 0.9;  // Of the NVLink rate, as DeepEP V2 takes it
constexpr std::int64_t kMostTokens = 1 << 20;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

double real(std::int64_t value) {
  return static_cast<double>(value);
}

/// Tries every library for one exchange.
class Search {
 public:
  Search(const ModelSpec& model, const Machine& machine, const ExchangeOptions& o, const CostModel* fits)
      : model_(model),
        machine_(machine),
        o_(o),
        fits_(fits),
        group_(place_group(machine, o.ep, 1)),
        slots_(model.experts + o.redundant_experts) {
    plan_.domains = static_cast<std::int32_t>(group_.domains);
    if (o.ep % group_.domains != 0)
      refuse(fmt::format("ep {} does not fill {} scale-up domains of {} GPUs evenly", o.ep, group_.domains,
                         machine.domain()));
    const auto ranks = static_cast<std::int32_t>(o.ep);
    // Copies of an expert lie anywhere; a token still draws from its groups of experts.
    const GroupLimit limit = group_limit(model, o.ep, plan_.domains);
    limited_ = limit == GroupLimit::holds;
    if (limit == GroupLimit::unknown) plan_.notes.push_back(group_limit_note(model, o.ep, plan_.domains));
    plan_.destinations = limited_
                             ? group_limited_destinations(ranks, plan_.domains, model.experts, model.top_k,
                                                          model.expert_groups, model.top_groups)
                             : expected_destinations({ranks, plan_.domains, slots_, model.top_k, 0, false});
  }

  ExchangePlan run(const std::vector<std::string>& libraries, const std::vector<std::string>& payloads) {
    for (const std::string& library : libraries) {
      std::string why;
      for (const std::string& payload : payloads) {
        const std::size_t before = plan_.choices.size();
        std::string refused;
        try {
          refused = add(library, payload);
        } catch (const Error& error) {
          if (error.code() != Errc::invalid_argument) throw;
          refused = error.what();
        }
        if (plan_.choices.size() != before || why.find(refused) != std::string::npos) continue;
        why += (why.empty() ? "" : "; ") + refused;
      }
      if (!why.empty()) plan_.refused.push_back(fmt::format("{}: {}", library, why));
    }
    std::stable_sort(plan_.choices.begin(), plan_.choices.end(),
                     [](const ExchangeChoice& a, const ExchangeChoice& b) { return a.us() < b.us(); });
    return std::move(plan_);
  }

 private:
  /// Why `library` cannot move `payload`; empty where it was added.
  std::string add(const std::string& library, const std::string& payload) {
    if (library == "deepep-normal") return add_normal(payload);
    if (library == "deepep-ll") return add_low_latency(payload);
    if (library == "deepep-v2") return add_v2(payload);
    if (library == "flashinfer") return add_flashinfer(payload);
    if (library == "pplx") return add_pplx(payload);
    if (library == "nccl") return add_nccl(payload);
    return add_shunt(payload);
  }

  [[nodiscard]] ExchangeChoice choice(const char* library, const std::string& payload) const {
    ExchangeChoice c;
    c.library = library;
    c.dispatch_payload = payload;
    return c;
  }

  [[nodiscard]] ExchangeShape shape(const std::string& payload, bool deduplicated) const {
    return {real(o_.tokens),    row_bytes(payload, model_.hidden),
            plan_.destinations, deduplicated,
            real(model_.top_k), o_.imbalance};
  }

  /// Times and bytes by tiers. The combine may send another number of rows than the dispatch.
  void by_tiers(ExchangeChoice& c, bool combine_deduplicated) const {
    const ExchangeTime there =
        exchange_time(machine_, group_, shape(c.dispatch_payload, c.deduplicated), c.path);
    const ExchangeTime back =
        exchange_time(machine_, group_, shape(o_.combine_payload, combine_deduplicated), c.path);
    c.near_bytes = there.near_bytes + back.near_bytes;
    c.far_bytes = there.far_bytes + back.far_bytes;
    c.dispatch_us = machine_.launch_us + there.us();
    c.combine_us = machine_.launch_us + back.us();
  }

  /// Replaces times by those of fitted kernels where there are fits.
  void by_fit(ExchangeChoice& c, const char* regime, const char* variant) const {
    if (fits_ == nullptr) return;
    KernelExchange one;
    one.regime = regime;
    one.variant = variant;
    one.ranks = o_.ep;
    one.domains = plan_.domains;
    one.slots = slots_;
    one.tokens = o_.tokens;
    one.sms = c.sms;
    one.imbalance = o_.imbalance;
    one.limited = limited_;
    one.dispatch_payload = c.dispatch_payload;
    one.combine_payload = o_.combine_payload;
    const ExchangePrediction prediction = predict_exchange(*fits_, model_, machine_, one);
    use(c, prediction.dispatch, prediction.combine);
  }

  static void use(ExchangeChoice& c, const Prediction& dispatch, const Prediction& combine) {
    c.dispatch_us = dispatch.us;
    c.combine_us = combine.us;
    c.fitted = true;
    c.measured = dispatch.measured && combine.measured;
    c.fit_hardware = dispatch.fit->hardware;
  }

  [[nodiscard]] std::string refusal(ExchangeKernels kernels, const std::string& payload) const {
    return cannot_serve(kernels, model_, machine_, group_, slots_, o_.tokens, payload);
  }

  [[nodiscard]] double buffers(ExchangeKernels kernels, const ExchangeChoice& c) const {
    return kernel_buffer_bytes(kernels, model_, o_.ep, slots_, o_.tokens, c.sms, c.dispatch_payload,
                               o_.combine_payload);
  }

  [[nodiscard]] bool nvlink() const {
    return machine_.node.gpu.has_scale_up && machine_.node.gpu.scale_up.fabric == Fabric::nvlink;
  }

  std::string add_normal(const std::string& payload) {
    if (std::string why = refusal(ExchangeKernels::normal, payload); !why.empty()) return why;
    const DeepEpChunks* chunks = deepep_chunks(o_.ep, false);
    ExchangeChoice c = choice("deepep-normal", payload);
    c.path = group_.domains > 1 ? ExchangePath::rail_aligned : ExchangePath::flat;
    c.sms = o_.sms > 0 ? o_.sms : kNormalSms;
    c.near_chunk = chunks->near;
    c.far_chunk = o_.ep > 8 ? chunks->far : 0;
    c.qps = o_.ep > 8 ? std::max<std::int64_t>(c.sms, 24) : 0;
    c.buffer_bytes = buffers(ExchangeKernels::normal, c);
    by_tiers(c, true);
    by_fit(c, "deepep_normal", "");
    plan_.choices.push_back(c);
    return {};
  }

  std::string add_low_latency(const std::string& payload) {
    if (std::string why = refusal(ExchangeKernels::low_latency, payload); !why.empty()) return why;
    ExchangeChoice c = choice("deepep-ll", payload);
    c.deduplicated = false;
    c.qps = slots_ / o_.ep;
    c.buffer_bytes = buffers(ExchangeKernels::low_latency, c);
    by_tiers(c, false);
    by_fit(c, "deepep_low_latency", "");
    plan_.choices.push_back(c);
    return {};
  }

  std::string add_v2(const std::string& payload) {
    if (payload == "nvfp4") return "moves no nvfp4 yet";
    if (!nvlink()) return "needs NVLink";
    if (o_.ep > 1024) return "at most 1024 ranks";
    if (group_.near > 64) return fmt::format("at most 64 ranks in a domain, not {}", group_.near);
    if (slots_ % o_.ep != 0) return "ranks must divide experts";
    if (slots_ > 2048 || slots_ / o_.ep > 256) return "at most 2048 experts, 256 on a rank";
    ExchangeChoice c = choice("deepep-v2", payload);
    c.path = group_.domains > 1 ? ExchangePath::rail_aligned : ExchangePath::flat;
    const std::int64_t device = machine_.node.gpu.sms > 0 ? machine_.node.gpu.sms : 132;
    c.sms = o_.sms > 0
                ? o_.sms
                : deepep_v2_sms(
                      slots_, model_.top_k, o_.ep, group_.domains, machine_.node.network_gb_per_s_per_gpu(),
                      kDeepEpScaleUpShare * machine_.node.gpu.scale_up.gb_per_s, device, o_.overlapped);
    c.qps = deepep_v2_qps(c.sms, group_.domains);
    by_tiers(c, true);
    plan_.choices.push_back(c);
    return {};
  }

  std::string add_flashinfer(const std::string& payload) {
    if (std::string why = refusal(ExchangeKernels::nvlink, payload); !why.empty()) return why;
    ExchangeChoice c = choice("flashinfer", payload);
    c.buffer_bytes = buffers(ExchangeKernels::nvlink, c);
    by_tiers(c, true);
    by_fit(c, "trtllm_nvlink_alltoall", "NVLinkOneSided");
    plan_.choices.push_back(c);
    return {};
  }

  std::string add_pplx(const std::string& payload) {
    if (payload == "nvfp4") return "moves no nvfp4";
    if (!nvlink()) return "needs NVLink inside a host";
    if (slots_ % o_.ep != 0) return "ranks must divide experts";
    ExchangeChoice c = choice("pplx", payload);
    c.deduplicated = false;
    c.buffer_bytes =
        all_to_all_bytes(AllToAll::pplx, slots_, model_.top_k, model_.hidden, o_.tokens, o_.ep, 1);
    by_tiers(c, false);
    plan_.choices.push_back(c);
    return {};
  }

  /// alltoallv of rows that were sorted by expert: one for each selection.
  std::string add_nccl(const std::string& payload) {
    ExchangeChoice c = choice("nccl", payload);
    c.deduplicated = false;
    c.sms = o_.sms;
    const double rows = real(o_.tokens * model_.top_k) * (1 + o_.imbalance);
    c.buffer_bytes =
        rows * (row_bytes(payload, model_.hidden) + row_bytes(o_.combine_payload, model_.hidden));
    by_tiers(c, false);
    if (fits_ != nullptr && group_.domains == 1 && nvlink()) {
      CostCase one;
      one.regime = "nccl";
      one.op = "alltoall";
      one.hardware = machine_.node.name;
      one.ranks = static_cast<std::int32_t>(o_.ep);
      one.where = "exchange by NCCL";
      const Device device = device_of(machine_.node);
      const double selections = real(o_.tokens * model_.top_k) * o_.imbalance;
      one.message_bytes = selections * row_bytes(payload, model_.hidden);
      const Prediction dispatch = fits_->predict(one, device);
      one.message_bytes = selections * row_bytes(o_.combine_payload, model_.hidden);
      use(c, dispatch, fits_->predict(one, device));
    }
    plan_.choices.push_back(c);
    return {};
  }

  std::string add_shunt(const std::string& payload) {
    if (!one_of_names(payload, {"bfloat16", "fp8_block128"})) return fmt::format("moves no {}", payload);
    if (o_.combine_payload != "bfloat16") return "results travel in bfloat16 here";
    const bool several = group_.domains > 1;
    for (const ExchangePath path :
         several ? std::vector<ExchangePath>{ExchangePath::flat, ExchangePath::rail_aligned}
                 : std::vector<ExchangePath>{ExchangePath::flat}) {
      for (const bool presum : several ? std::vector<bool>{false, true} : std::vector<bool>{false}) {
        ExchangeChoice c = choice("shunt", payload);
        c.path = path;
        c.presum = presum;
        if (o_.shunt_bytes) {
          c.buffer_bytes = o_.shunt_bytes({o_.tokens, slots_, model_.top_k, model_.hidden, o_.ep, group_.near,
                                           path != ExchangePath::flat, presum, payload == "fp8_block128"});
        }
        // Without sums on the way every selection has a row of results.
        by_tiers(c, presum);
        plan_.choices.push_back(c);
      }
    }
    return {};
  }

  static bool one_of_names(const std::string& name, std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&](const char* one) { return name == one; });
  }

  const ModelSpec& model_;
  const Machine& machine_;
  const ExchangeOptions& o_;
  const CostModel* fits_;
  Group group_;
  std::int64_t slots_;
  bool limited_ = false;
  ExchangePlan plan_;
};

}  // namespace

const std::vector<std::string>& exchange_libraries() {
  static const std::vector<std::string> names = {"deepep-normal", "deepep-ll", "deepep-v2", "flashinfer",
                                                 "pplx",          "nccl",      "shunt"};
  return names;
}

ExchangePlan plan_exchange(const ModelSpec& model, const Machine& machine, const ExchangeOptions& o,
                           const CostModel* fits) {
  if (model.experts == 0) refuse(fmt::format("{} has no experts", model.name));
  if (o.ep < 2 || o.ep > machine.gpus())
    refuse(fmt::format("ep {}: expected a number in [2, {}], the GPUs of {} hosts {}", o.ep, machine.gpus(),
                       machine.hosts, machine.node.name));
  const auto in_range = [](const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
    if (value < low || value > high)
      refuse(fmt::format("{} {}: expected a number in [{}, {}]", name, value, low, high));
  };
  in_range("tokens", o.tokens, 1, kMostTokens);
  in_range("redundant experts", o.redundant_experts, 0, 1 << 16);
  in_range("SMs", o.sms, 0, machine.node.gpu.sms > 0 ? machine.node.gpu.sms : 1024);
  if (!(o.imbalance >= 1 && o.imbalance <= real(model.experts)))
    refuse(fmt::format("imbalance {}: expected a number in [1, {}]", o.imbalance, model.experts));
  const std::int64_t slots = model.experts + o.redundant_experts;
  if (o.ep > slots) refuse(fmt::format("ep {} is more than the {} experts of {}", o.ep, slots, model.name));
  (void)row_bytes(o.combine_payload, model.hidden);
  for (const std::string& payload : o.dispatch_payloads) (void)row_bytes(payload, model.hidden);
  for (const std::string& library : o.libraries) {
    const auto& names = exchange_libraries();
    if (std::find(names.begin(), names.end(), library) == names.end())
      refuse(fmt::format("library \"{}\" does not exist; {}", library, allowed_names(library, names)));
  }
  std::vector<std::string> payloads = o.dispatch_payloads;
  if (payloads.empty()) {
    // Rows in a type that the experts cannot multiply in would be widened first: nobody sends them.
    payloads = {"bfloat16"};
    if (machine.node.gpu.fp8_tflops > 0) payloads.emplace_back("fp8_block128");
    if (machine.node.gpu.fp4_tflops > 0) payloads.emplace_back("nvfp4");
  }
  ExchangePlan plan =
      Search(model, machine, o, fits).run(o.libraries.empty() ? exchange_libraries() : o.libraries, payloads);
  if (plan.choices.empty()) refuse(fmt::format("no library fits: {}", fmt::join(plan.refused, "; ")));
  return plan;
}

}  // namespace shunt::plan
