# Libraries of NVIDIA that come with the CUDA toolkit, from a system package, or as Python wheels. A wheel holds
# nvidia/<name>/include and nvidia/<name>/lib, and only the versioned name of a shared library, so the usual search of
# CMake does not find it.

# Folders where <name> may lie, best first: <NAME>_HOME of CMake or of the environment (alone, where it is given), then the
# wheel folders of the python3 that comes first on the PATH.
function(shunt_wheel_folders name result)
  string(TOUPPER ${name} upper)
  if(${upper}_HOME)
    set(${result} "${${upper}_HOME}" PARENT_SCOPE)
    return()
  endif()
  if(NOT "$ENV{${upper}_HOME}" STREQUAL "")
    set(${result} "$ENV{${upper}_HOME}" PARENT_SCOPE)
    return()
  endif()
  find_program(SHUNT_PYTHON3 python3)
  mark_as_advanced(SHUNT_PYTHON3)
  set(folders)
  if(SHUNT_PYTHON3)
    execute_process(COMMAND ${SHUNT_PYTHON3} -c
                    "import site, sys; print(';'.join(site.getsitepackages() + [site.getusersitepackages()]))"
                    OUTPUT_VARIABLE sites OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    foreach(site IN LISTS sites)
      if(IS_DIRECTORY "${site}/nvidia/${name}")
        list(APPEND folders "${site}/nvidia/${name}")
      endif()
    endforeach()
  endif()
  set(${result} "${folders}" PARENT_SCOPE)
endfunction()

# Searches <name> for a header and one shared library: <NAME>_INCLUDE_DIR and <NAME>_LIBRARY of the same folder, so that
# never the header of one version meets the library of another.
#   shunt_find_in_folders(<name> <header> <library names> <other folders>)
macro(shunt_find_in_folders name header libraries folders)
  string(TOUPPER ${name} shunt_upper)
  shunt_wheel_folders(${name} shunt_first)
  set(shunt_given ${${shunt_upper}_HOME} $ENV{${shunt_upper}_HOME})
  if(shunt_given)
    set(shunt_folders ${shunt_first})
  else()
    set(shunt_folders ${folders} ${shunt_first})
  endif()
  foreach(folder IN LISTS shunt_folders)
    if(NOT ${shunt_upper}_LIBRARY)
      unset(${shunt_upper}_INCLUDE_DIR CACHE)
      unset(${shunt_upper}_LIBRARY CACHE)
      find_path(${shunt_upper}_INCLUDE_DIR ${header} PATHS ${folder} PATH_SUFFIXES include NO_DEFAULT_PATH)
      if(${shunt_upper}_INCLUDE_DIR)
        find_library(${shunt_upper}_LIBRARY NAMES ${libraries} PATHS ${folder}
                     PATH_SUFFIXES lib lib64 lib/${CMAKE_LIBRARY_ARCHITECTURE} NO_DEFAULT_PATH)
      endif()
    endif()
  endforeach()
  mark_as_advanced(${shunt_upper}_INCLUDE_DIR ${shunt_upper}_LIBRARY)
endmacro()
