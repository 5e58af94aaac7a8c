// The table of the plugin for libtorch; nothing here includes torch.
#include "plugin.h"

extern "C" __attribute__((visibility("default"))) const shunt::bench::TorchTable* shunt_torch_plugin();

const shunt::bench::TorchTable* shunt_torch_plugin() {
  using namespace shunt::bench;
  static const TorchTable table{.build = kTorchBuild,
                                .version = SHUNT_TORCH_VERSION,
                                .make_moves = torch_peer::make_moves,
                                .make_top_k = torch_peer::make_top_k,
                                .make_layer = torch_peer::make_layer};
  return &table;
}
