#pragma once

#include <string>

namespace actnn::app {

/// The text of `actnn info`: versions, CPU targets, devices, operators.
std::string info();

}  // namespace actnn::app
