#include "doctor_launch.h"

#ifdef SHUNT_HAVE_OFI
#include <dlfcn.h>
#include <rdma/fabric.h>

#include <set>
#include <string>

#include <fmt/format.h>
#endif

namespace shunt::bench {

#ifdef SHUNT_HAVE_OFI

std::vector<Record> examine_fabric() {
  void* const library = dlopen("libfabric.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return {};
  auto* const ask = reinterpret_cast<decltype(&fi_getinfo)>(dlsym(library, "fi_getinfo"));
  auto* const release = reinterpret_cast<decltype(&fi_freeinfo)>(dlsym(library, "fi_freeinfo"));
  std::vector<Record> records;
  fi_info* found = nullptr;
  if (ask != nullptr && release != nullptr &&
      ask(FI_VERSION(1, 9), nullptr, nullptr, 0, nullptr, &found) == 0) {
    std::set<std::string> seen;  // one line for all the endpoint types of an address
    for (const fi_info* info = found; info != nullptr; info = info->next) {
      if (info->fabric_attr == nullptr || info->domain_attr == nullptr) continue;
      const auto text = [](const char* value) { return std::string(value == nullptr ? "" : value); };
      const std::string name = text(info->fabric_attr->prov_name);
      const std::string address =
          fmt::format("{} {}", text(info->domain_attr->name), text(info->fabric_attr->name));
      if (!seen.insert(name + " " + address).second) continue;
      Record record("provider");
      record.set("name", name)
          .set("version", fmt::format("{}.{}", FI_MAJOR(info->fabric_attr->prov_version),
                                      FI_MINOR(info->fabric_attr->prov_version)))
          .set("address", address);
      records.push_back(std::move(record));
    }
    release(found);
  }
  // Providers may have left threads or handlers behind: the library stays loaded.
  return records;
}

#else

std::vector<Record> examine_fabric() {
  return {};
}

#endif

}  // namespace shunt::bench
