#pragma once

#include <string>
#include <string_view>

namespace shunt::bench {

/// A file that must not have been there before.
struct NewFile {
  std::string path;
  int descriptor = -1;  ///< -1: not made, or removed
  /// Makes it, and its folder where that is missing. Errors: Errc::io with path and reason.
  void make();
  /// On disk when it returns. Errors: Errc::io.
  void append(std::string_view text) const;
  void remove() noexcept;
};

/// Table and record file of one run, made before anything is measured and grown point by point, so that what
/// was measured survives whatever ends the run.
class ResultFiles {
 public:
  /// Makes both files, and the folder of the table where it is missing. Without a name for the table it is
  /// data/<time>_unified_moe_separated.tsv; without one for the records, the table's with .jsonl.
  /// Errors: Errc::io where a file exists (nothing is overwritten) or cannot be made, with path and reason;
  ///         Errc::invalid_argument where both names are one. Neither file is left then.
  ResultFiles(const std::string& tsv, const std::string& jsonl);
  /// Removes both files where no point was added: there is nothing in them to keep.
  ~ResultFiles();
  ResultFiles(const ResultFiles&) = delete;
  ResultFiles& operator=(const ResultFiles&) = delete;

  /// What stands above the points.
  void begin(std::string_view table, std::string_view records);
  /// Whole lines of one point; on disk when it returns. Errors: Errc::io.
  void add_point(std::string_view table, std::string_view records);

  [[nodiscard]] const std::string& tsv_path() const noexcept { return tsv_.path; }
  [[nodiscard]] const std::string& jsonl_path() const noexcept { return jsonl_.path; }

 private:
  NewFile tsv_, jsonl_;
  bool keep_ = false;
};

}  // namespace shunt::bench
