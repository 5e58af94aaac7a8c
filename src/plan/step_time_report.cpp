#include <fmt/format.h>

#include <shunt/plan/step_time.h>

namespace shunt::plan {

Report report_step_time(const ModelSpec& model, const Machine& machine, const StepTime& time) {
  const StepTimeOptions& o = time.options;
  const Layout& l = o.layout;
  Report report("plan_step");
  report.head.set("model", model.name)
      .set("node", machine.node.name)
      .set("hosts", machine.hosts)
      .set("phase", phase_names()[static_cast<std::size_t>(o.phase)])
      .set("world", l.world())
      .set("tp", l.tp)
      .set("cp", l.cp)
      .set("dp", l.dp)
      .set("pp", l.pp)
      .set("ep", l.ep)
      .set("etp", l.etp)
      .set("edp", l.edp())
      .set("imbalance", time.imbalance)
      .set("exchange_path", std::string(exchange_path_name(time.path)))
      .set("exchange_source", time.exchange_source)
      .set("step_us", time.step_us)
      .set("bubble_us", time.bubble_us)
      .set("exposed_communication_us", time.exposed_communication_us)
      .set("hidden_communication_us", time.hidden_communication_us)
      .set("tokens_per_s", time.tokens_per_s)
      .set("tokens_per_s_per_gpu", time.tokens_per_s_per_gpu);
  report.summary.push_back(fmt::format("{} on {} GPUs of {}: tp {} cp {} dp {} pp {} ep {} etp {}",
                                       model.name, l.world(), machine.node.name, l.tp, l.cp, l.dp, l.pp, l.ep,
                                       l.etp));
  switch (o.phase) {
    case Phase::training:
      report.head.set("model_flops_utilization", time.model_flops_utilization);
      report.summary.push_back(fmt::format(
          "one step {:.4g} ms, {:.4g} tokens/s, {:.4g} on each GPU, {:.1f} % of the dense {} rate",
          time.step_us * 1e-3, time.tokens_per_s, time.tokens_per_s_per_gpu,
          100 * time.model_flops_utilization, math_type_name(time.peak_type)));
      break;
    case Phase::prefill:
      report.head.set("ttft_ms", time.ttft_ms).set("model_flops_utilization", time.model_flops_utilization);
      report.summary.push_back(fmt::format(
          "first token after {:.4g} ms, {:.4g} tokens/s, {:.4g} on each GPU, {:.1f} % of the dense {} rate",
          time.ttft_ms, time.tokens_per_s, time.tokens_per_s_per_gpu, 100 * time.model_flops_utilization,
          math_type_name(time.peak_type)));
      break;
    case Phase::decode:
      report.head.set("tpot_ms", time.tpot_ms).set("tokens_per_s_per_user", time.tokens_per_s_per_user);
      report.summary.push_back(fmt::format(
          "a token every {:.4g} ms ({:.4g} tokens/s for a user), {:.4g} tokens/s, {:.4g} on each GPU",
          time.tpot_ms, time.tokens_per_s_per_user, time.tokens_per_s, time.tokens_per_s_per_gpu));
      break;
  }
  Table parts{"parts",
              {{"name", "part"},
               {"tier", "tier"},
               {"us", "us"},
               {"exposed_us", "exposed us"},
               {"share", "share", Unit::share},
               {"flops", "flops", Unit::none, true},
               {"bytes", "bytes", Unit::bytes}},
              {}};
  for (const TimePart& part : time.parts)
    parts.rows.push_back({part.name, part.tier, part.us, part.exposed_us, part.exposed_us / time.step_us,
                          part.flops, part.bytes});
  Table stages{"stages",
               {{"stage", "stage"},
                {"layers", "layers"},
                {"forward_us", "forward us"},
                {"backward_us", "backward us"},
                {"weight_gradient_us", "weight gradient us"},
                {"send_us", "send us"}},
               {}};
  for (std::size_t i = 0; i < time.stages.size(); ++i) {
    const StageTime& s = time.stages[i];
    stages.rows.push_back({static_cast<std::int64_t>(i), l.stage_layers[i], s.forward_us, s.backward_us,
                           s.weight_gradient_us, s.send_us});
  }
  report.tables = {parts};
  if (l.pp > 1) report.tables.push_back(stages);
  report.notes = time.notes;
  return report;
}

}  // namespace shunt::plan
