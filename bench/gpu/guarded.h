// No exception leaves a library: what throws is a text and a number to whoever called.
#pragma once

#include <exception>
#include <string>

namespace rnnfused {
namespace cuda {

inline std::string& last_error() {
  static std::string text;
  return text;
}

// 0, or 1 and a text for limits_error().
template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return 1;
  }
}

}  // namespace cuda
}  // namespace rnnfused
