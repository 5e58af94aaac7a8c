# Finds libfabric (package libfabric-dev): target libfabric::libfabric. Installed beside shuntConfig.cmake, since the static
# libraries of shunt leave their libraries to the consumer.
find_path(libfabric_INCLUDE_DIR rdma/fabric.h)
find_library(libfabric_LIBRARY fabric)
mark_as_advanced(libfabric_INCLUDE_DIR libfabric_LIBRARY)
if(libfabric_INCLUDE_DIR)
  file(STRINGS ${libfabric_INCLUDE_DIR}/rdma/fabric.h libfabric_lines REGEX "#define FI_(MAJOR|MINOR)_VERSION ")
  string(REGEX REPLACE "[^0-9]*([0-9]+)[^0-9]+([0-9]+).*" "\\1.\\2" libfabric_VERSION "${libfabric_lines}")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(libfabric REQUIRED_VARS libfabric_LIBRARY libfabric_INCLUDE_DIR VERSION_VAR libfabric_VERSION)
if(libfabric_FOUND AND NOT TARGET libfabric::libfabric)
  add_library(libfabric::libfabric UNKNOWN IMPORTED)
  set_target_properties(libfabric::libfabric PROPERTIES IMPORTED_LOCATION ${libfabric_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES ${libfabric_INCLUDE_DIR})
endif()
