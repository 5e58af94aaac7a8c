#include "shell.h"

#include <cctype>

namespace shunt::scenario {
namespace {

bool is_plain(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
         std::string_view("_./:,@%+=-#").find(c) != std::string_view::npos;
}

bool all_plain(std::string_view text, bool dollars) {
  // A # begins a comment only at the start of a word.
  if (text.empty() || text.front() == '#') return false;
  for (const char c : text)
    if (!is_plain(c) && !(dollars && (c == '$' || c == '{' || c == '}'))) return false;
  return true;
}

/// Whether a name or "{" follows the dollar, and not "(", which would run a command.
bool names_variable(std::string_view after) {
  return !after.empty() && (std::isalpha(static_cast<unsigned char>(after[0])) != 0 || after[0] == '_' ||
                            (after.size() > 1 && after[0] == '{' &&
                             (std::isalpha(static_cast<unsigned char>(after[1])) != 0 || after[1] == '_')));
}

}  // namespace

std::string shell_word(std::string_view text) {
  if (all_plain(text, false)) return std::string(text);
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'')
      out += "'\\''";
    else
      out += c;
  }
  return out + "'";
}

std::string shell_words(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : " ") + shell_word(word);
  return line;
}

std::string in_double_quotes(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\' || c == '$' || c == '`') out += '\\';
    out += c;
  }
  return out;
}

std::string variable_value(std::string_view text, bool always) {
  if (text.size() >= 2 && text.front() == '"' && text.back() == '"') {
    text = text.substr(1, text.size() - 2);
    always = true;
  }
  bool braces = false;
  for (const char c : text) braces = braces || c == '{' || c == '}';
  bool dollars = true;
  for (std::size_t i = 0; i < text.size(); ++i)
    if (text[i] == '$' && !names_variable(text.substr(i + 1))) dollars = false;
  if (!always && dollars && !braces && all_plain(text, true)) return std::string(text);
  std::string out = "\"";
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"' || c == '\\' || c == '`' || (c == '$' && !names_variable(text.substr(i + 1)))) out += '\\';
    out += c;
  }
  return out + '"';
}

}  // namespace shunt::scenario
