# Finds a CUDA compiler and its runtime library: SHUNT_CUDA_FOUND, or SHUNT_CUDA_HINT says what is missing. The flags of a
# target with CUDA sources come from shunt_cuda_target().
# The list that builds of PyTorch take, from the environment or CMake, where this build's own is not given.
set(default_architectures "8.0+PTX;9.0a;10.0f")
if(TORCH_CUDA_ARCH_LIST)
  set(default_architectures "${TORCH_CUDA_ARCH_LIST}")
elseif(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
  set(default_architectures "$ENV{TORCH_CUDA_ARCH_LIST}")
endif()
set(SHUNT_CUDA_ARCHITECTURES "${default_architectures}" CACHE STRING
    "GPUs to build for, as in TORCH_CUDA_ARCH_LIST: 8.0, 9.0a, 10.0f; with +PTX also for newer ones, compiled when loaded")

# -gencode options of a list like "8.0+PTX;9.0a", separated by semicolons, commas or spaces.
function(shunt_cuda_gencode list result)
  string(REGEX REPLACE "[ ,]+" ";" names "${list}")
  set(flags)
  foreach(name IN LISTS names)
    if(NOT name MATCHES "^([0-9]+)[.]([0-9])([af]?)([+]PTX)?$")
      message(FATAL_ERROR "SHUNT_CUDA_ARCHITECTURES names \"${name}\"; allowed is a list of compute capabilities such as "
                          "8.0+PTX;9.0a;10.0f")
    endif()
    set(number ${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3})
    set(ptx "${CMAKE_MATCH_4}")
    list(APPEND flags -gencode=arch=compute_${number},code=sm_${number})
    if(ptx)
      list(APPEND flags -gencode=arch=compute_${number},code=compute_${number})
    endif()
  endforeach()
  if(NOT flags)
    message(FATAL_ERROR "SHUNT_CUDA_ARCHITECTURES is empty; give a list of compute capabilities such as 8.0+PTX;9.0a;10.0f")
  endif()
  set(${result} "${flags}" PARENT_SCOPE)
endfunction()
shunt_cuda_gencode("${SHUNT_CUDA_ARCHITECTURES}" SHUNT_CUDA_GENCODE)

set(SHUNT_CUDA_FOUND OFF)
set(SHUNT_CUDA_HINT "no nvcc on the PATH; CMAKE_CUDA_COMPILER or CUDACXX names one")
# The architectures are options of the targets: this CMake does not know all names that nvcc does.
set(CMAKE_CUDA_ARCHITECTURES OFF)
include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  # CMake 3.25 does not know that nvcc has C++20, which the modules ask for.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA_STANDARD_LATEST 20)
  endif()
  find_package(CUDAToolkit QUIET)
  # Says whether it knows the architectures, without compiling.
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} ${SHUNT_CUDA_GENCODE} --dryrun -x cu -c /dev/null -o shunt_cuda_probe.o
                  WORKING_DIRECTORY ${PROJECT_BINARY_DIR} RESULT_VARIABLE probe OUTPUT_QUIET ERROR_QUIET)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
    set(SHUNT_CUDA_HINT "nvcc ${CMAKE_CUDA_COMPILER_VERSION} cannot compile C++20, 12.0 can")
  elseif(NOT probe EQUAL 0)
    set(SHUNT_CUDA_HINT "nvcc ${CMAKE_CUDA_COMPILER_VERSION} does not know all of ${SHUNT_CUDA_ARCHITECTURES}; SHUNT_CUDA_ARCHITECTURES can name others")
  elseif(NOT TARGET CUDA::cudart_static)
    set(SHUNT_CUDA_HINT "nvcc is there, but not its static runtime library, libcudart_static.a")
  else()
    set(SHUNT_CUDA_FOUND ON)
  endif()
endif()

# Flags of the CUDA sources of one target. Contraction is off as on the CPU: fused operations are written as fma.
function(shunt_cuda_target target)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES OFF CUDA_RUNTIME_LIBRARY Static)
  set(warnings "$<$<BOOL:${SHUNT_WERROR}>:--Werror=all-warnings>")
  target_compile_options(${target} PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;-lineinfo;-Xcompiler=-Wall,-Wextra;${warnings};${SHUNT_CUDA_GENCODE}>")
endfunction()
