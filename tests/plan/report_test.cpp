#include <shunt/plan/report.h>

#include <shunt/plan/memory.h>
#include <shunt/plan/params.h>

#include "models.h"

namespace shunt::plan {
namespace {

Report sample() {
  Report report("sample");
  report.summary = {"a sentence"};
  report.head.set("x", std::int64_t{1});
  report.tables.push_back(
      {"rows",
       {{"name", "name"}, {"bytes", "bytes", Unit::bytes}, {"hidden", "hidden", Unit::none, true}},
       {{std::string("a,\"b"), std::int64_t{3} << 30, true}, {std::string("c"), RecordValue{}, 0.5}}});
  report.notes = {"note"};
  return report;
}

TEST(ReportTest, RendersEveryFormat) {
  EXPECT_EQ(render(sample(), Format::text),
            "a sentence\n\nname      bytes\na,\"b  3.000 GiB\nc             -\n\nnote: note\n");
  EXPECT_EQ(render(sample(), Format::markdown),
            "a sentence\n\n| name |     bytes |\n|------|----------:|\n| a,\"b | 3.000 GiB |\n| c    |       "
            "  - |\n\n"
            "- note\n");
  EXPECT_EQ(render(sample(), Format::csv), "name,bytes,hidden\n\"a,\"\"b\",3221225472,true\nc,,0.5\n");
  EXPECT_EQ(
      render(sample(), Format::json),
      "{\"record\":\"sample\",\"x\":1,\"rows\":[{\"name\":\"a,\\\"b\",\"bytes\":3221225472,\"hidden\":true},"
      "{\"name\":\"c\",\"bytes\":null,\"hidden\":0.5}],\"notes\":[\"note\"]}\n");
}

TEST(ReportTest, ShowsAmounts) {
  EXPECT_EQ(show_count(671026419200), "671,026,419,200");
  EXPECT_EQ(show_count(-1000), "-1,000");
  EXPECT_EQ(show_count(999), "999");
  EXPECT_EQ(show_short(671026419200), "671.03 B");
  EXPECT_EQ(show_bytes(20063312640.0), "18.685 GiB");
  EXPECT_EQ(show_bytes(1048576), "1.000 MiB");
}

TEST(ReportTest, RefusesOtherFormats) {
  expect_refused("--format \"xml\": allowed are text, markdown, json, csv",
                 [] { (void)parse_format("xml"); });
}

TEST(ParamsReportTest, HasExactCounts) {
  const std::string json = render(report_parameters(preset("r1")), Format::json);
  for (const char* part :
       {"\"record\":\"plan_params\"", "\"model\":\"r1\"", "\"total_parameters\":671026419200",
        "\"active_parameters\":37552297472", "\"kv_bytes_per_token\":70272", "\"mtp_parameters\":11610068224",
        "\"part\":\"routed_experts\",\"parameters\":653908770816"})
    EXPECT_NE(json.find(part), std::string::npos) << part;
}

TEST(MemoryReportTest, SaysWhetherItFits) {
  MemoryOptions options;
  options.layout.pp = 4;
  options.layout.ep = 8;
  options.layout.dp = 16;
  const ModelSpec model = preset("mixtral-8x7b");
  EXPECT_NE(render(report_memory(model, plan_memory(model, options), ""), Format::json).find("\"fits\":null"),
            std::string::npos);
  options.capacity_bytes = std::int64_t{80} << 30;
  const Report report = report_memory(model, plan_memory(model, options), "h100");
  EXPECT_NE(render(report, Format::json).find("\"fits\":true"), std::string::npos);
  EXPECT_NE(render(report, Format::text).find("of h100; it fits"), std::string::npos);
  const std::string csv = render(report, Format::csv);
  EXPECT_EQ(csv.rfind("stage,layers,parameters,in_flight,weights_bytes,", 0), 0U) << csv;
}

}  // namespace
}  // namespace shunt::plan
