#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shunt::detail {

/// A text as a sequence of words: runs of letters and digits in lower case (bytes above 127 count as letters,
/// so that UTF-8 words stay whole), and each other visible character for itself.
struct Text {
  std::vector<std::int32_t> tokens;  ///< Index into `words`, in reading order
  std::vector<std::string> words;    ///< Distinct, by first appearance
};

[[nodiscard]] Text split_words(std::string_view text);

/// Errors: Errc::io where the file cannot be read or holds no word.
[[nodiscard]] Text read_text(const std::string& path);

/// A gate without training: a word's embedding x and the rows r_e of the router are uniform in [-1, 1)^kDim,
/// drawn from the seed; the logit of expert e at a word that follows `previous` is r_e . x(word) + r_e .
/// x(previous) / 2. The second term is a little context: without it equal words would always meet the same
/// experts, which no real gate does. Everything is float32 in a fixed order of operations.
class TextGate {
 public:
  static constexpr std::int32_t kDim = 32;

  TextGate(std::int32_t num_experts, std::uint64_t seed);
  /// r_e . x(word) for every expert e.
  void word_logits(std::string_view word, std::span<float> logits) const;

 private:
  std::int32_t num_experts_;
  std::uint64_t word_seed_;
  std::vector<float>
      router_;  ///< [kDim, E]: experts are contiguous, so that the loop over them is a vector loop
};

/// The ids.size() largest logits, largest first, equal ones by index.
void top_k(std::span<const float> logits, std::span<std::int32_t> ids);

}  // namespace shunt::detail
