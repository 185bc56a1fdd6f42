#include "cache_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <string>

#include "model/kv_cache.h"
#include "weight_arrays.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitnet {
namespace {

void truncate(KvCache& cache, std::size_t length) {
  require(length <= cache.length(), "length is beyond what the cache holds");
  cache.set_length(length);
}

// float32 [kv_heads][2][head_dim]: a position's keys and values as they were rounded.
nb::ndarray<nb::numpy, float> read(const KvCache& cache, std::size_t layer, std::size_t position) {
  require(layer < cache.layers() && position < cache.length(), "layer or position is out of range");
  const std::size_t head_size = 2 * cache.head_dim();
  std::unique_ptr<float[]> values(new float[cache.kv_heads() * head_size]);
  for (std::size_t head = 0; head < cache.kv_heads(); ++head)
    cache.read(layer, head, position, values.get() + head * head_size);
  return new_array(std::move(values), {cache.kv_heads(), 2, cache.head_dim()});
}

// Codes uint8 [rows][columns], and float16 bits uint16 [rows][2].
nb::tuple quantize_head(const F32Matrix& x, std::size_t bits, const std::string& isa) {
  const Kernels& kernels = select_kernels(isa);
  require(bits == 3 || bits == 4 || bits == 8, "bits must be 3, 4 or 8");
  const std::size_t rows = x.shape(0), columns = x.shape(1);
  require(columns > 0, "x has no columns");
  std::unique_ptr<std::uint8_t[]> codes(new std::uint8_t[rows * columns]);
  std::unique_ptr<std::uint16_t[]> ranges(new std::uint16_t[rows * 2]);
  for (std::size_t row = 0; row < rows; ++row)
    kernels.quantize_head(x.data() + row * columns, columns, bits, codes.get() + row * columns,
                          ranges.get() + row * 2);
  return nb::make_tuple(new_array(std::move(codes), {rows, columns}),
                        new_array(std::move(ranges), {rows, 2}));
}

}  // namespace

void bind_cache(nb::module_& m) {
  nb::class_<KvCache>(m, "KvCache")
      .def_prop_ro("length", &KvCache::length)
      .def_prop_ro("capacity", &KvCache::capacity)
      .def_prop_ro("bytes", &KvCache::bytes)
      .def("truncate", &truncate, "length"_a)
      .def("read", &read, "layer"_a, "position"_a);
  m.def("quantize_head", &quantize_head, "x"_a, "bits"_a, "isa"_a);
}

}  // namespace bitnet
