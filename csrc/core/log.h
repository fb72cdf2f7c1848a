// What is printed for those who ask by RNNFUSED_LOG.
#pragma once

#include <cstdlib>
#include <cstring>

namespace rnnfused {

// RNNFUSED_LOG=plan: every call says how it is run.
inline bool logs_plans() {
  static const bool on = [] {
    const char* log = std::getenv("RNNFUSED_LOG");
    return log && std::strcmp(log, "plan") == 0;
  }();
  return on;
}

}  // namespace rnnfused
