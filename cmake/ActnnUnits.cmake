# actnn_add_unit(TARGET NAME FILE...): sources of a target that are compiled together, as one translation unit, where
# ACTNN_UNITY_BUILD is on. Most of a file's time goes into torch's headers and the templates that they bring, which a unit pays
# for once. Names in anonymous namespaces must therefore differ within a unit.
function(actnn_add_unit target name)
  target_sources(${target} PRIVATE ${ARGN})
  set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES UNITY_GROUP "${name}")
  set_target_properties(${target} PROPERTIES UNITY_BUILD ${ACTNN_UNITY_BUILD} UNITY_BUILD_MODE GROUP)
endfunction()
