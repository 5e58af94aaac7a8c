#pragma once

#include <shunt/layer/matmul.h>

namespace shunt::detail {

/// Result: false where oneDNN has nothing for this processor and dtype; C is untouched then.
[[nodiscard]] bool onednn_matmul(const MatmulCall& call);

}  // namespace shunt::detail
