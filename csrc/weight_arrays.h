// NumPy arrays from Python as the model's weights. std::invalid_argument for a shape that does not fit.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weights.h"

namespace bitnet {

using F32Vector =
    nanobind::ndarray<const float, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using F32Matrix =
    nanobind::ndarray<const float, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using U8Matrix =
    nanobind::ndarray<const std::uint8_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using I8Matrix =
    nanobind::ndarray<const std::int8_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

template <class T>
nanobind::ndarray<nanobind::numpy, T> new_array(std::unique_ptr<T[]> data,
                                                std::initializer_list<std::size_t> shape) {
  T* raw = data.release();
  nanobind::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nanobind::ndarray<nanobind::numpy, T>(raw, shape, owner);
}

inline void require(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument(what);
}

std::vector<float> read_vector(nanobind::handle array, std::size_t size, const std::string& name);
std::vector<float> read_table(nanobind::handle array, std::size_t rows, std::size_t columns,
                              const std::string& name);
// bfloat16 arrives as uint16 bits; the array is used in place.
Table view_table(nanobind::handle array, std::size_t rows, std::size_t columns, const std::string& name);

// A tuple (packed, scales, bias or None, norm weight or None, LinearRecipe as a dict).
Linear read_linear(nanobind::handle item, std::size_t rows, std::size_t columns, const std::string& name,
                   ThreadPool& pool);
// A dict of a layer's norms, None where there is none, and its linears.
Layer read_layer(const Config& config, const nanobind::dict& from, ThreadPool& pool);

}  // namespace bitnet
