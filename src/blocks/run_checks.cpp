#include "src/blocks/run_checks.h"

namespace actnn::blocks {

void check_lengths(const Plan& plan, const RunLengths& lengths) {
  const Program& program = plan.program;
  check_length("inputs", lengths.inputs, program.inputs);
  check_length("parameters", lengths.parameters, program.parameters());
  check_length("integers", lengths.integers, program.integers);
  int64_t imported = 0;
  for (const Import& import : plan.imports) {
    imported += static_cast<int64_t>(import.format.parts());
  }
  check_length("copies", lengths.copies, imported);
}

}  // namespace actnn::blocks
