#include "text.h"

#include <unordered_map>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "read_file.h"
#include "streams.h"

namespace shunt::detail {
namespace {

enum class Kind { space, word, mark };

Kind kind_of(unsigned char c) noexcept {
  if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c >= 128)
    return Kind::word;
  return c > 32 && c < 127 ? Kind::mark : Kind::space;
}

char lower(char c) noexcept {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

/// FNV-1a, 64 bits: the stream of a word's embedding.
std::uint64_t hash_word(std::string_view word) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : word) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return hash;
}

float signed_unit(Random& random) noexcept {
  return static_cast<float>(2.0 * random.uniform() - 1.0);
}

}  // namespace

Text split_words(std::string_view text) {
  Text result;
  std::unordered_map<std::string, std::int32_t> index;
  for (std::size_t begin = 0; begin < text.size();) {
    const Kind kind = kind_of(static_cast<unsigned char>(text[begin]));
    std::size_t end = begin + 1;
    if (kind == Kind::word) {
      while (end < text.size() && kind_of(static_cast<unsigned char>(text[end])) == Kind::word) ++end;
    }
    if (kind != Kind::space) {
      std::string word(text.substr(begin, end - begin));
      for (char& c : word) c = lower(c);
      const auto [it, is_new] = index.try_emplace(word, static_cast<std::int32_t>(result.words.size()));
      if (is_new) result.words.push_back(std::move(word));
      result.tokens.push_back(it->second);
    }
    begin = end;
  }
  return result;
}

Text read_text(const std::string& path) {
  const std::string content = read_file(path);
  Text text = split_words(content);
  if (text.tokens.empty()) {
    throw Error(Errc::io, fmt::format("{}: holds no words ({} bytes); routing from text needs at least one",
                                      path, content.size()));
  }
  return text;
}

TextGate::TextGate(std::int32_t num_experts, std::uint64_t seed)
    : num_experts_(num_experts), word_seed_(purpose_seed(seed, Purpose::word)) {
  router_.resize(static_cast<std::size_t>(kDim) * static_cast<std::size_t>(num_experts));
  const std::uint64_t router_seed = purpose_seed(seed, Purpose::router);
  for (std::int32_t e = 0; e < num_experts; ++e) {
    Random random(router_seed, static_cast<std::uint64_t>(e));
    for (std::int32_t d = 0; d < kDim; ++d) {
      router_[static_cast<std::size_t>(d) * static_cast<std::size_t>(num_experts) +
              static_cast<std::size_t>(e)] = signed_unit(random);
    }
  }
}

void TextGate::word_logits(std::string_view word, std::span<float> logits) const {
  Random random(word_seed_, hash_word(word));
  const auto num_experts = static_cast<std::size_t>(num_experts_);
  for (std::size_t e = 0; e < num_experts; ++e) logits[e] = 0.0F;
  for (std::size_t d = 0; d < kDim; ++d) {
    const float x = signed_unit(random);
    const float* row = router_.data() + d * num_experts;
    for (std::size_t e = 0; e < num_experts; ++e) logits[e] += x * row[e];
  }
}

void top_k(std::span<const float> logits, std::span<std::int32_t> ids) {
  std::size_t count = 0;
  for (std::size_t e = 0; e < logits.size(); ++e) {
    const float value = logits[e];
    if (count == ids.size()) {
      if (!(value > logits[static_cast<std::size_t>(ids[count - 1])])) continue;
      --count;
    }
    // Insertion keeps `ids` sorted; an equal logit stays behind the lower index that came first.
    std::size_t place = count++;
    for (; place > 0 && value > logits[static_cast<std::size_t>(ids[place - 1])]; --place) {
      ids[place] = ids[place - 1];
    }
    ids[place] = static_cast<std::int32_t>(e);
  }
}

}  // namespace shunt::detail
