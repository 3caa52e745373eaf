#include "src/blocks/run_checks.h"

namespace actnn::blocks {

void check_lengths(const PreparedPlan& prepared, const RunLengths& lengths) {
  const Program& program = prepared.plan.program;
  check_length("inputs", lengths.inputs, program.inputs);
  check_length("parameters", lengths.parameters, prepared.parameters);
  if (lengths.buffers) {
    check_length("buffers", *lengths.buffers, prepared.buffers);
  }
  check_length("integers", lengths.integers, program.integers);
  int64_t imported = 0;
  for (const Import& import : prepared.plan.imports) {
    imported += static_cast<int64_t>(import.format.parts());
  }
  check_length("copies", lengths.copies, imported);
}

}  // namespace actnn::blocks
