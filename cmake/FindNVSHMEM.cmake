# Finds NVSHMEM 3: targets NVSHMEM::host (the shared library) and NVSHMEM::device (what is linked into device code).
# NVSHMEM_HOME names a folder (the wheel nvidia-nvshmem-cu13 unpacked, or an installation); without it the system and the
# wheels of python3 are searched, in this order.
include(${CMAKE_CURRENT_LIST_DIR}/ShuntWheel.cmake)
# Debian and Red Hat packages of NVIDIA keep one folder for each CUDA release.
set(nvshmem_folders /usr/local/nvshmem)
if(CMAKE_CUDA_COMPILER_VERSION)
  string(REGEX REPLACE "[.].*" "" nvshmem_cuda "${CMAKE_CUDA_COMPILER_VERSION}")
  file(GLOB nvshmem_more /usr/include/nvshmem_${nvshmem_cuda})
  foreach(folder IN LISTS nvshmem_more)
    list(APPEND nvshmem_folders ${folder})
  endforeach()
endif()
shunt_find_in_folders(nvshmem nvshmem.h "nvshmem_host;libnvshmem_host.so.3" "${nvshmem_folders}")
# The packages put headers and libraries apart.
if(NOT NVSHMEM_LIBRARY AND nvshmem_more)
  list(GET nvshmem_more 0 nvshmem_first)
  find_path(NVSHMEM_INCLUDE_DIR nvshmem.h PATHS ${nvshmem_first} NO_DEFAULT_PATH)
  find_library(NVSHMEM_LIBRARY NAMES nvshmem_host libnvshmem_host.so.3
               PATHS /usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/nvshmem/${nvshmem_cuda} NO_DEFAULT_PATH)
endif()
set(NVSHMEM_DEVICE_LIBRARY)
if(NVSHMEM_LIBRARY)
  get_filename_component(nvshmem_lib ${NVSHMEM_LIBRARY} DIRECTORY)
  if(EXISTS ${nvshmem_lib}/libnvshmem_device.a)
    set(NVSHMEM_DEVICE_LIBRARY ${nvshmem_lib}/libnvshmem_device.a)
  endif()
endif()
if(EXISTS "${NVSHMEM_INCLUDE_DIR}/non_abi/nvshmem_version.h")
  set(NVSHMEM_VERSION)
  foreach(part MAJOR MINOR PATCH)
    file(STRINGS ${NVSHMEM_INCLUDE_DIR}/non_abi/nvshmem_version.h nvshmem_line
         REGEX "#define NVSHMEM_VENDOR_${part}_VERSION ")
    string(REGEX REPLACE "[^0-9]" "" nvshmem_line "${nvshmem_line}")
    list(APPEND NVSHMEM_VERSION ${nvshmem_line})
  endforeach()
  list(JOIN NVSHMEM_VERSION . NVSHMEM_VERSION)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(NVSHMEM REQUIRED_VARS NVSHMEM_LIBRARY NVSHMEM_DEVICE_LIBRARY NVSHMEM_INCLUDE_DIR
                                  VERSION_VAR NVSHMEM_VERSION)
if(NVSHMEM_FOUND AND NOT TARGET NVSHMEM::host)
  add_library(NVSHMEM::host UNKNOWN IMPORTED)
  set_target_properties(NVSHMEM::host PROPERTIES IMPORTED_LOCATION ${NVSHMEM_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES
                                                 ${NVSHMEM_INCLUDE_DIR})
  add_library(NVSHMEM::device STATIC IMPORTED)
  set_target_properties(NVSHMEM::device PROPERTIES IMPORTED_LOCATION ${NVSHMEM_DEVICE_LIBRARY}
                                                   INTERFACE_INCLUDE_DIRECTORIES ${NVSHMEM_INCLUDE_DIR})
endif()
