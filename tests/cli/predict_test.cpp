// `shunt calibrate` and `shunt predict` as programs call them.
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "process.h"

namespace shunt::cli {
namespace {

namespace fs = std::filesystem;

class PredictTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "shunt-predict-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }
  std::string write(const std::string& name, const std::string& text) const {
    const std::string path = (directory_ / name).string();
    std::ofstream(path) << text;
    return path;
  }
  static std::string read(const std::string& path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  fs::path directory_;
};

TEST_F(PredictTest, WritesPredictionsBesideMeasurements) {
  const std::string path = write("cases.csv",
                                 "hardware,collected_with,op,dtype,gpus,message_elements,latency_us\n"
                                 "h100_sxm,nccl 2.27.3,all_gather,half,8,268435456,1398.9\n"
                                 "h100_sxm,nccl 2.27.3,all_gather,half,8,1024,\n");
  const Ended ended = run_shunt({"predict", path});
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.out.substr(0, ended.out.find('\n')),
            "hardware,collected_with,op,dtype,gpus,message_elements,latency_us,predicted_us,error_pct");
  const Ended json = run_shunt({"predict", path, "--format", "json"});
  ASSERT_EQ(json.status, 0) << json.err;
  const nlohmann::json document = nlohmann::json::parse(json.out);
  EXPECT_EQ(document.at("rows").size(), 2U);
  EXPECT_LT(std::abs(document.at("rows").at(0).at("error_pct").get<double>()), 20);
  EXPECT_TRUE(document.at("rows").at(1).at("error_pct").is_null());
  EXPECT_GT(document.at("rows").at(1).at("predicted_us").get<double>(), 1);
}

TEST_F(PredictTest, PutsEachPredictionBesideItsColumn) {
  const std::string path =
      write("cases.csv",
            "hardware,collected_with,nodes,hidden,experts,topk,tokens_per_rank,dispatch_us,combine_us\n"
            "gb200,none,1,7168,256,8,128,30,40\n");
  const Ended ended = run_shunt({"predict", path});
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(
      ended.out.substr(0, ended.out.find('\n')),
      "hardware,collected_with,nodes,hidden,experts,topk,tokens_per_rank,dispatch_us,dispatch_predicted_us,"
      "dispatch_error_pct,combine_us,combine_predicted_us,combine_error_pct,predicted_us,error_pct");
}

TEST_F(PredictTest, NeverOverwrites) {
  const std::string data = write("a.csv",
                                 "hardware,collected_with,op,dtype,gpus,message_elements,latency_us\n"
                                 "h100_sxm,x,alltoall,half,8,1024,10\n"
                                 "h100_sxm,x,alltoall,half,8,1048576,20\n");
  const std::string fit = (directory_ / "fit.toml").string();
  const Ended first = run_shunt({"calibrate", data, "--output", fit, "--no-validation"});
  ASSERT_EQ(first.status, 0) << first.err;
  const std::string made = read(fit);
  EXPECT_EQ(made.find("date"), std::string::npos);
  const Ended again = run_shunt({"calibrate", data, "--output", fit});
  EXPECT_EQ(again.status, 2);
  EXPECT_NE(again.err.find(fit), std::string::npos);
  EXPECT_EQ(read(fit), made);
  const std::string other = (directory_ / "other.toml").string();
  ASSERT_EQ(run_shunt({"calibrate", data, "-o", other, "--no-validation"}).status, 0);
  EXPECT_EQ(read(other), made);
  const Ended predicted = run_shunt({"predict", data, "--fit", fit, "-o", fit});
  EXPECT_EQ(predicted.status, 2);
  EXPECT_EQ(read(fit), made);
}

TEST_F(PredictTest, RefusesBadFilesWithTheirLine) {
  const std::string path = write("bad.csv",
                                 "hardware,collected_with,op,dtype,gpus,message_elements,latency_us\n"
                                 "h100_sxm,x,alltoall,half,8,1024,-5\n");
  const Ended ended = run_shunt({"predict", path});
  EXPECT_EQ(ended.status, 2);
  EXPECT_EQ(ended.out, "");
  EXPECT_EQ(ended.err, "shunt: " + path + ":2: latency_us \"-5\": expected a number in [0.001, 100000000]\n");
}

}  // namespace
}  // namespace shunt::cli
