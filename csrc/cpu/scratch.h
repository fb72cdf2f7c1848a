// Memory for a call's work that outlives the call.
#pragma once

#include <memory>
#include <new>

#include "core/sequence.h"

namespace rnnfused {

class Scratch {
 public:
  // As many bytes, aligned to a cache line; what was there is lost if they were fewer.
  void* at_least(Index bytes) {
    if (bytes > size_) {
      clear();
      memory_.reset(::operator new(size_t(bytes), std::align_val_t{64}));
      size_ = bytes;
    }
    return memory_.get();
  }
  void clear() {
    memory_.reset();
    size_ = 0;
  }
  void* data() const { return memory_.get(); }
  Index size() const { return size_; }

 private:
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<void, Free> memory_;
  Index size_ = 0;
};

}  // namespace rnnfused
