# Installs BUILD_DIR to a prefix that is then moved, so that nothing can depend on where it was installed or on the source
# tree; configures, builds and runs the consumer against it; checks that a wrong version is refused.
file(REMOVE_RECURSE ${WORK_DIR})
set(staged ${WORK_DIR}/staged)
set(prefix ${WORK_DIR}/prefix)

execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${staged} --config "${CONFIG}"
                OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
file(RENAME ${staged} ${prefix})

set(configure ${CMAKE_COMMAND} -S ${CONSUMER_DIR} -G ${GENERATOR} -DCMAKE_PREFIX_PATH=${prefix}
              -DCMAKE_CXX_COMPILER=${CXX_COMPILER} -DCMAKE_CXX_FLAGS=${CXX_FLAGS})
execute_process(COMMAND ${configure} -B ${WORK_DIR}/build -DSHUNT_VERSION=${VERSION} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --build ${WORK_DIR}/build COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${WORK_DIR}/build/consumer COMMAND_ERROR_IS_FATAL ANY)

execute_process(COMMAND ${configure} -B ${WORK_DIR}/wrong -DSHUNT_VERSION=99.0
                RESULT_VARIABLE status OUTPUT_QUIET ERROR_VARIABLE message)
if(status EQUAL 0 OR NOT message MATCHES "99\\.0")
  message(FATAL_ERROR "find_package(shunt 99.0) should have been refused for its version, but said: ${message}")
endif()
file(REMOVE_RECURSE ${WORK_DIR})
