# Writes OUTPUT from TEMPLATE with VERSION and the git revision of SOURCE. It runs at every build, because a commit
# moves no file that CMake watches; the file changes, and is compiled again, only when the revision does.
set(SHUNT_VERSION ${VERSION})
set(SHUNT_GIT_REVISION unknown)
find_program(GIT_EXECUTABLE git)
if(GIT_EXECUTABLE)
  # A source archive unpacked inside someone else's checkout has a prefix there: that revision is not ours.
  execute_process(COMMAND ${GIT_EXECUTABLE} -C ${SOURCE} rev-parse --show-prefix
                  RESULT_VARIABLE status OUTPUT_VARIABLE prefix ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(status EQUAL 0 AND prefix STREQUAL "")
    execute_process(COMMAND ${GIT_EXECUTABLE} -C ${SOURCE} rev-parse --short=12 HEAD
                    RESULT_VARIABLE status OUTPUT_VARIABLE revision ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(status EQUAL 0)
      set(SHUNT_GIT_REVISION ${revision})
    endif()
  endif()
endif()
configure_file(${TEMPLATE} ${OUTPUT} @ONLY)
