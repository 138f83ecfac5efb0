// Named checks that speak in full sentences. The public Python functions have checked before; these keep a call of the
// bare operators from reading memory it must not.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <vector>

namespace ssmvdm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

inline std::string text(const Shape& shape) {
  std::string s = "(";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (shape.size() == 1 ? ",)" : ")");
}
inline std::string text(const torch::stable::Device& device) {
  if (device.is_cpu()) return "cpu";
  return (device.is_cuda() ? "cuda:" : "another device, ") + std::to_string(device.index());
}
inline Shape shape_of(const Tensor& t) {
  Shape shape;
  for (int64_t d = 0; d < t.dim(); ++d) shape.push_back(t.size(d));
  return shape;
}

inline void check_shape(const Tensor& t, const Shape& expected, const char* op, const std::string& name) {
  const Shape shape = shape_of(t);
  STD_TORCH_CHECK(shape == expected, op, ": ", name, " must have the shape ", text(expected), ", but has ",
                  text(shape));
}
inline void check_dtype(const Tensor& t, ScalarType expected, const char* op, const std::string& name) {
  STD_TORCH_CHECK(t.scalar_type() == expected, op, ": ", name, " must have dtype ",
                  torch::headeronly::toString(expected), ", but has ", torch::headeronly::toString(t.scalar_type()));
}
inline void check_device(const Tensor& t, const Tensor& first, const char* op, const std::string& name) {
  STD_TORCH_CHECK(t.device() == first.device(), op, ": ", name, " must be on ", text(first.device()),
                  ", as the first tensor is, but is on ", text(t.device()));
}

}  // namespace ssmvdm
