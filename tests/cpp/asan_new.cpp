// A shim for processes under ASan, whose operator new ends the process where memory is not to be had,
// whatever its options say. Here it throws, as the language has it, for sizes beyond all memory: rnnfused
// makes an error in torch's words of that. Preloaded ahead of ASan by tools/pytest_asan.
#include <dlfcn.h>

#include <cstddef>
#include <new>

void* operator new(size_t size) {
  using New = void* (*)(size_t);
  static const New of_asan = reinterpret_cast<New>(dlsym(RTLD_NEXT, "_Znwm"));
  if (size >> 40) throw std::bad_alloc();
  return of_asan(size);
}
