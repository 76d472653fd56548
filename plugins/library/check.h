// Checks of tensors that read like a specification: one line a tensor, one symbol a size.
//
//   Symbol B("B"), T("T"), D("D", {64, 128});
//   expect(q, "q", DFLASH_BFLOAT16, {B, T, D});  // B, T and D take their sizes from q,
//   expect(k, "k", DFLASH_BFLOAT16, {B, T, D});  // and k must have the same
//
// A failed check throws Invalid with the tensor, the dimension, expected and actual, and the line of the specification;
// at the C boundary it becomes a status (guarded, in library.cpp).
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "dflash.h"

namespace dflash {

struct Invalid : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The line of a specification: the caller's, as a default argument.
struct Line {
  const char* file;
  int number;
};
constexpr Line this_line(const char* file = __builtin_FILE(), int number = __builtin_LINE()) { return {file, number}; }

// Something that must hold, and the line that says so.
struct Condition {
  Condition(bool holds, Line line = this_line()) : holds(holds), line(line) {}  // NOLINT: meant to convert
  bool holds;
  Line line;
};

template <typename... Parts>
void require(Condition condition, const Parts&... message) {
  if (condition.holds) return;
  std::ostringstream text;
  (text << ... << message);
  const std::string file = condition.line.file;
  text << " [" << file.substr(file.rfind('/') + 1) << ":" << condition.line.number << "]";
  throw Invalid(text.str());
}

inline std::string joined(const std::vector<int64_t>& values, const char* separator) {
  std::ostringstream text;
  for (size_t i = 0; i < values.size(); ++i) text << (i ? separator : "") << values[i];
  return text.str();
}

// A size with a name: the first tensor that has it gives it its value. `allowed`: the values it may take, if not any.
class Symbol {
 public:
  explicit Symbol(const char* name, std::initializer_list<int64_t> allowed = {}) : name_(name), allowed_(allowed) {}

  int value() const { return static_cast<int>(value_); }

  void match(const std::string& tensor, int64_t actual, Line line) {
    if (value_ < 0) {
      require({actual >= 1 && actual <= INT32_MAX, line}, tensor, " (", name_, "): got ", actual,
              ", expected 1 to 2^31 - 1");
      bool listed = allowed_.empty();
      for (int64_t choice : allowed_) listed = listed || choice == actual;
      require({listed, line}, tensor, " (", name_, "): got ", actual, ", expected ", joined(allowed_, " or "));
      value_ = actual;
      source_ = tensor;
    }
    require({actual == value_, line}, tensor, " (", name_, "): got ", actual, ", expected ", value_, " as in ",
            source_);
  }

 private:
  std::string name_, source_;
  std::vector<int64_t> allowed_;
  int64_t value_ = -1;
};

inline const char* type_name(int32_t dtype) {
  static const char* const names[] = {"bfloat16", "float32", "int32", "int64", "float8_e4m3"};
  return dtype >= 0 && dtype < 5 ? names[dtype] : "an unknown dtype";
}

// Strides of size-1 dimensions never matter.
inline void expect_contiguous(const DFlashTensor& tensor, const std::string& name, Line line) {
  int64_t stride = 1;
  for (int i = tensor.ndim - 1; i >= 0; --i) {
    require({tensor.shape[i] == 1 || tensor.stride[i] == stride, line}, name, ".stride[", i, "]: got ",
            tensor.stride[i], ", expected ", stride, " (contiguous)");
    stride *= tensor.shape[i];
  }
}

using Shape = std::initializer_list<std::reference_wrapper<Symbol>>;

// `tensor` is there, of this dtype and shape, contiguous and 16-byte aligned.
inline void expect(const DFlashTensor* tensor, const std::string& name, DFlashType dtype, Shape shape,
                   Line line = this_line()) {
  require({tensor && tensor->data, line}, name, ": got null, expected a tensor");
  require({tensor->dtype == dtype, line}, name, ": got ", type_name(tensor->dtype), ", expected ", type_name(dtype));
  const auto dimensions = static_cast<int32_t>(shape.size());
  require({tensor->ndim == dimensions, line}, name, ": got ", tensor->ndim, " dimensions, expected ", dimensions);
  int i = 0;
  for (Symbol& symbol : shape) {
    symbol.match(name + ".shape[" + std::to_string(i) + "]", tensor->shape[i], line);
    ++i;
  }
  expect_contiguous(*tensor, name, line);
  const uintptr_t past = reinterpret_cast<uintptr_t>(tensor->data) % 16;
  require({past == 0, line}, name, ": got an address ", past, " bytes behind a multiple of 16, expected a multiple");
}

}  // namespace dflash
