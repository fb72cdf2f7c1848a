#include "emulation/schedule.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace rnnfused {
namespace emulation {
namespace {

[[noreturn]] void refuse(const char* variable, const char* expected, const std::string& got) {
  throw std::runtime_error(std::string(variable) + ": expected " + expected + ", got '" + got + "'");
}

uint64_t number(const char* variable, uint64_t otherwise) {
  const char* text = std::getenv(variable);
  if (!text) return otherwise;
  char* end = nullptr;
  const uint64_t value = std::strtoull(text, &end, 10);
  if (end == text || *end) refuse(variable, "a number", text);
  return value;
}

int choice(const char* variable, int otherwise, const char* first, const char* second, const char* third) {
  const char* text = std::getenv(variable);
  if (!text) return otherwise;
  const std::string names[] = {first, second, third};
  for (int i = 0; i < 3; ++i)
    if (text == names[i]) return i;
  refuse(variable, (names[0] + ", " + names[1] + " or " + names[2]).c_str(), text);
}

}  // namespace

Schedule Schedule::from_environment() {
  Schedule result;
  result.seed = number("RNNFUSED_EMULATION_SEED", result.seed);
  result.policy =
      Policy(choice("RNNFUSED_EMULATION_POLICY", int(result.policy), "round_robin", "random", "priorities"));
  result.delivery =
      Delivery(choice("RNNFUSED_EMULATION_DELIVERY", int(result.delivery), "eager", "random", "late"));
  result.resident_clusters = int(number("RNNFUSED_EMULATION_RESIDENT", uint64_t(result.resident_clusters)));
  result.arch = int(number("RNNFUSED_EMULATION_ARCH", uint64_t(result.arch)));
  result.active_clusters = int(number("RNNFUSED_EMULATION_ACTIVE", uint64_t(result.active_clusters)));
  result.races = number("RNNFUSED_EMULATION_RACES", result.races) != 0;
  result.stores_publish = number("RNNFUSED_EMULATION_STORES_PUBLISH", result.stores_publish) != 0;
  return result;
}

Schedule& schedule() {
  static thread_local Schedule current = Schedule::from_environment();
  return current;
}

}  // namespace emulation
}  // namespace rnnfused
