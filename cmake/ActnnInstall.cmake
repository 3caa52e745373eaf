# Installs the library, its headers and a CMake package: with it, find_package(actnn) defines actnn::actnn.
include(CMakePackageConfigHelpers)

# What src/ found out about torch.
get_directory_property(ActnnTorch_VERSION DIRECTORY "${PROJECT_SOURCE_DIR}/src" DEFINITION ActnnTorch_VERSION)
get_directory_property(_actnn_torch_cpu DIRECTORY "${PROJECT_SOURCE_DIR}/src" DEFINITION ActnnTorch_torch_cpu_LIBRARY)
cmake_path(GET _actnn_torch_cpu PARENT_PATH ACTNN_TORCH_LIBRARY_DIR)

# Installed files find torch where it was at build time, and the program finds the library beside it.
set_property(TARGET actnn PROPERTY INSTALL_RPATH "${ACTNN_TORCH_LIBRARY_DIR}")
if(TARGET actnn_app)
  cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_LIBDIR BASE_DIRECTORY "${CMAKE_INSTALL_FULL_BINDIR}"
             OUTPUT_VARIABLE _actnn_libraries)
  set_property(TARGET actnn_app PROPERTY INSTALL_RPATH "$ORIGIN/${_actnn_libraries}" "${ACTNN_TORCH_LIBRARY_DIR}")
endif()

set(_actnn_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/actnn")
install(TARGETS actnn actnn_core EXPORT actnnTargets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/actnn" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.h")
install(EXPORT actnnTargets NAMESPACE actnn:: DESTINATION "${_actnn_package_dir}")

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/actnnConfig.cmake.in"
                              "${PROJECT_BINARY_DIR}/package/actnnConfig.cmake"
                              INSTALL_DESTINATION "${_actnn_package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/package/actnnConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/package/actnnConfig.cmake"
              "${PROJECT_BINARY_DIR}/package/actnnConfigVersion.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/FindActnnTorch.cmake"
        DESTINATION "${_actnn_package_dir}")
