// wrappers [NAME...]: runs the checks of this folder, or those of the wrappers that are named, on the device
// (or, compiled for the host, in the emulation). A line for each: its name and "ok", "differs: ..." or
// "skipped: ...". Ends with 0 if none differs, 77 where there is no device.
//
// A fault ends what a process can do with a device, and a hang never ends: so a child runs the checks, and
// where it is lost another one goes on after the check that lost it.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "all.cuh"

namespace {

using namespace rnnfused::cuda;

constexpr int kNoDevice = 77;

// What the processes share.
struct Progress {
  size_t next;  // the check that runs, or comes next
  int differ;
};

std::string name_of(const WrapperCheck& check) {
  return std::string(check.wrapper) + (*check.what ? std::string(" (") + check.what + ")" : "");
}

void say(const WrapperCheck& check, const std::string& words) {
  std::printf("%s %s\n", name_of(check).c_str(), words.c_str());
  std::fflush(stdout);
}

bool is_chosen(const WrapperCheck& check, int count, char** names) {
  for (int i = 1; i < count; ++i)
    if (std::strcmp(names[i], check.wrapper) == 0) return true;
  return count <= 1;
}

// The child: 0 where it came to the end, 1 where it must be followed by another.
int run_checks(Progress& progress, int count, char** names) {
  int arch = 0;
  try {
    start_device();
    arch = device_arch() / 10;
  } catch (const std::exception& error) {
    std::printf("no device: %s\n", error.what());
    std::fflush(stdout);
    return kNoDevice;
  }
  const WrapperChecks checks = wrapper_checks();
  while (progress.next < checks.size()) {
    const WrapperCheck& check = checks[progress.next];
    if (is_chosen(check, count, names)) {
      if (arch < check.arch) {
        say(check, "skipped: needs sm_" + std::to_string(check.arch));
      } else {
        alarm(kCheckSeconds);
        std::string difference;
        try {
          difference = check.run();
        } catch (const std::exception& error) {
          difference = error.what();
        }
        alarm(0);
        progress.differ += difference.empty() ? 0 : 1;
        say(check, difference.empty() ? "ok" : "differs: " + difference);
      }
    }
    ++progress.next;
    if (device_is_lost()) return 1;
  }
  return 0;
}

}  // namespace

int main(int count, char** names) {
  void* shared = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 1;
  Progress& progress = *new (shared) Progress{0, 0};
  const WrapperChecks checks = wrapper_checks();
  while (progress.next < checks.size()) {
    const size_t before = progress.next;
    const pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) _exit(run_checks(progress, count, names));
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
    if (WIFEXITED(status) && WEXITSTATUS(status) == kNoDevice) return kNoDevice;
    if (WIFSIGNALED(status)) {
      const int signal = WTERMSIG(status);
      say(checks[progress.next],
          "differs: " + (signal == SIGALRM ? "no end after " + std::to_string(kCheckSeconds) + " s"
                                           : "ended by signal " + std::to_string(signal)));
      ++progress.differ;
      ++progress.next;
    } else if (progress.next == before) {
      std::printf("the checks ended with status %d\n", WEXITSTATUS(status));
      return 1;
    }
  }
  std::printf("wrappers: %d differ\n", progress.differ);
  return progress.differ ? 1 : 0;
}
