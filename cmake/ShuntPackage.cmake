# The installed CMake package: find_package(shunt) gives shunt::core … shunt::bench.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/shunt)

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/shuntConfig.cmake.in ${PROJECT_BINARY_DIR}/shuntConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/shuntConfigVersion.cmake COMPATIBILITY SameMinorVersion)

install(EXPORT shunt NAMESPACE shunt:: FILE shuntTargets.cmake DESTINATION ${package_dir})
install(FILES ${PROJECT_BINARY_DIR}/shuntConfig.cmake ${PROJECT_BINARY_DIR}/shuntConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/Findlibfabric.cmake
        DESTINATION ${package_dir})
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/data/text DESTINATION ${CMAKE_INSTALL_DATADIR}/shunt)
