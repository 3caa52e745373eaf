# The component `python`: what the Python package needs of a build, in actnn/lib. pyproject.toml makes a wheel of it;
#
#   cmake --install build --component python --prefix FOLDER
#
# puts the whole package into FOLDER, for PYTHONPATH. An ordinary installation leaves the component out.

# python/actnn/_library.py compares this with the running torch before it loads the library.
file(CONFIGURE OUTPUT "${CMAKE_LIBRARY_OUTPUT_DIRECTORY}/torch_version.txt" CONTENT "${ActnnTorch_VERSION}\n")

if(SKBUILD)
  # Wheels know no links, so that every name would be a copy. torch has loaded its libraries before this one is.
  set_property(TARGET actnn PROPERTY VERSION)
  set_property(TARGET actnn PROPERTY SOVERSION)
  set_property(TARGET actnn PROPERTY INSTALL_RPATH "$ORIGIN")
else()
  set_property(TARGET actnn APPEND PROPERTY INSTALL_RPATH "$ORIGIN")
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/python/actnn" DESTINATION "." COMPONENT python EXCLUDE_FROM_ALL
          FILES_MATCHING PATTERN "*.py" PATTERN "py.typed" PATTERN "__pycache__" EXCLUDE)
endif()

install(TARGETS actnn LIBRARY DESTINATION "actnn/lib" COMPONENT python EXCLUDE_FROM_ALL)
install(FILES "${CMAKE_LIBRARY_OUTPUT_DIRECTORY}/torch_version.txt" DESTINATION "actnn/lib"
        COMPONENT python EXCLUDE_FROM_ALL)

# Highway's library comes along where it is a shared one: the machine that a wheel is installed on need not have it.
find_package(hwy REQUIRED)
get_target_property(_actnn_hwy_type hwy::hwy TYPE)
if(_actnn_hwy_type STREQUAL "SHARED_LIBRARY")
  install(PROGRAMS "$<TARGET_FILE:hwy::hwy>" DESTINATION "actnn/lib" RENAME "$<TARGET_SONAME_FILE_NAME:hwy::hwy>"
          COMPONENT python EXCLUDE_FROM_ALL)
endif()
