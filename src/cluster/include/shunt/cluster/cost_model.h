#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <shunt/cluster/hardware.h>

namespace shunt {

/// Rates of one kind of machine as the cost model uses them, all from its data sheet.
struct Device {
  std::string name;  ///< As given: a node preset ("dgx-h100"), or a name in measurement files ("h100_sxm")
  double scale_up_gb_per_s = 0;  ///< NVLink or xGMI of one GPU, one direction
  double network_gb_per_s = 0;   ///< NIC of one GPU, one direction
  std::int32_t sms = 0;          ///< Multiprocessors; 0 where unknown
  std::int32_t dies = 1;         ///< Compute dies in one package
  std::string gpu;               ///< Preset of its GPU
};

/// Finds the data sheet of `name`: a node preset, or a GPU of one with or without "_sxm" ("h100_sxm" is dgx-h100).
/// Errors: Errc::invalid_argument with the nearest name and those there are.
[[nodiscard]] Device find_device(const std::string& name, const std::string& directory);
/// The same of a node that was read already.
[[nodiscard]] Device device_of(const NodeSpec& node);

/// One operation whose time is asked for, or was measured.
struct CostCase {
  std::string regime;    ///< Which kernels: see cost_regimes()
  std::string op;        ///< dispatch, combine, …: see cost_forms()
  std::string variant;   ///< Kernels that need parameters of their own, such as NVLinkOneSided; often empty
  std::string hardware;  ///< Name that find_device() knows
  std::string collected_with;  ///< Software and version; empty where unknown
  std::int32_t ranks = 1;
  std::int32_t nodes = 1;
  std::int64_t hidden = 0;
  std::int64_t experts = 0;
  std::int64_t topk = 0;
  std::int32_t node_limit = 0;  ///< As RoutedShape
  std::int32_t groups =
      0;  ///< Groups of experts, of which a token uses group_limit; 0: none, see RoutedShape
  std::int32_t group_limit = 0;
  std::int64_t tokens_per_rank = 0;
  std::string payload;            ///< As row_bytes()
  std::string expert_dtype;       ///< What the experts compute in, where a file says so; only for shape_key()
  std::int32_t sms = 0;           ///< Multiprocessors given to the kernel, where that is an option
  double message_bytes = 0;       ///< Collectives: bytes of the whole message (nccl-tests' "size")
  bool dealt_in_turn = false;     ///< As RoutedShape
  std::int32_t masked_draws = 0;  ///< Selections that the measuring program set to -1 at random places
  double imbalance = 1;           ///< Load of the busiest rank over the mean
  double measured_us = 0;         ///< 0 where it was not measured
  std::string where;              ///< file:line, for messages
};

/// One parameter of a formula.
struct CostParameter {
  std::string name;
  std::string unit;
  double prior = 1;  ///< Expected before any measurement; where the data says nothing, the fit stays here
  double low = 1e-9;
  double high = 1e9;
  std::string meaning;
};

struct CostTerms;

/// One formula: the time of one operation of one regime, from data sheet rates and its parameters.
struct CostForm {
  std::string regime;
  std::string op;
  std::vector<CostParameter> parameters;
  double (*evaluate)(const double* parameters, const CostTerms& terms) = nullptr;
};

/// All formulas, in a fixed order.
[[nodiscard]] const std::vector<CostForm>& cost_forms();

/// Formula of a regime and operation.
/// Errors: Errc::invalid_argument with the nearest name.
[[nodiscard]] const CostForm& find_cost_form(const std::string& regime, const std::string& op);

/// What a formula needs of a case and a device, worked out once. Rates are bytes per microsecond.
struct CostTerms {
  double latency = 1;  ///< Factor of what crosses a package: sqrt(dies)
  double older = 0;    ///< 1 for the older of the releases that were measured
  double tokens = 0, hidden = 0, experts = 0, topk = 0;
  double ranks = 1, nodes = 1, several_nodes = 0, log_nodes = 0;
  double row = 0;           ///< Bytes
  double selections = 0;    ///< (token, k) with an expert, of one rank
  double any = 0;           ///< 1 - exp(-selections): whether any row travels at all
  double rank_rows = 0;     ///< Distinct ranks of a token
  double node_rows = 0;     ///< Distinct nodes of a token
  double near_bytes = 0;    ///< One rank's bytes to others of its node
  double far_bytes = 0;     ///< One rank's bytes to other nodes
  double blocks = 1;        ///< Thread blocks of a kernel with one block (or share of one) for each expert
  double shared_block = 0;  ///< 1 where several experts share a block
  double waves = 0;         ///< Tokens that one block handles
  double channels = 1;      ///< Half of the multiprocessors given to the kernel
  double message = 0;       ///< Collectives: bytes of the whole message
  double scale_up = 1, network = 1;
  double gap = 0;  ///< (ranks - 1)^0.8
};

[[nodiscard]] CostTerms cost_terms(const CostCase& cost_case, const Device& device);

/// Time in microseconds.
[[nodiscard]] double evaluate_cost(const CostForm& form, std::span<const double> parameters,
                                   const CostTerms& terms);

/// Whether cases belong together when one is left out of a fit: the model's shape (for collectives the element type
/// and size), and the number of nodes or ranks.
[[nodiscard]] std::string shape_key(const CostCase& cost_case);
[[nodiscard]] std::string scale_key(const CostCase& cost_case);

}  // namespace shunt
