# What every target of the project is compiled with. Contraction is off because the packed format is defined by separate
# roundings (include/actnn/core/rounding.h).
add_library(actnn_compile_options INTERFACE)
target_compile_features(actnn_compile_options INTERFACE cxx_std_20)
target_compile_options(actnn_compile_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off -Wall -Wextra -Wpedantic -Wshadow -Wno-unused-parameter>)
set_property(TARGET actnn_compile_options PROPERTY POSITION_INDEPENDENT_CODE ON)

option(ACTNN_SANITIZE "Compile with the address and undefined-behaviour sanitizers" OFF)
if(ACTNN_SANITIZE)
  target_compile_options(actnn_compile_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all
                                                         -fno-omit-frame-pointer)
  target_link_options(actnn_compile_options INTERFACE -fsanitize=address,undefined)
endif()
