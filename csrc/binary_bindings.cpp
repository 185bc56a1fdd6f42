// Products of one-bit values: packed arrays in, int32 arrays out. Every std::invalid_argument becomes a
// ValueError. Work releases the GIL.
#include "binary_bindings.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "model/bit_matrix.h"
#include "model/sign_matrix.h"
#include "weight_arrays.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitnet {
namespace {

using Planes = nb::ndarray<const std::uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// Threads, kernels and scratch that matrices share. One job at a time; callers wait.
struct BitPool {
  BitPool(std::size_t count, const std::string& isa)
      : engine(select_kernels(isa)), kernels(binary_kernels(engine)), threads(check(count)) {}

  static std::size_t check(std::size_t count) {
    require(count >= 1 && count <= 1024, "threads must be in 1..1024");
    return count;
  }

  const Kernels& engine;
  const BinaryKernels& kernels;
  ThreadPool threads;
  BitScratch scratch;
  std::mutex mutex;
};

// A matrix with the pool it works in, which the Python object keeps alive.
struct PooledMatrix {
  BitMatrix matrix;
  BitPool& pool;
  std::unique_ptr<SignMatrix> signs;  // made by the first product with int8, under the pool's mutex
};

// Bounds every sum: 128 a column at most.
void check_columns(std::size_t columns, std::size_t bytes) {
  require(columns >= 1 && columns < (std::size_t{1} << 24), "columns must be in 1..2^24-1");
  require(bytes == (columns + 7) / 8, "a row must have (columns + 7) / 8 bytes");
}

PooledMatrix make_binary(const U8Matrix& bits, std::size_t columns, BitPool& pool) {
  check_columns(columns, bits.shape(1));
  const std::size_t rows = bits.shape(0);
  const std::uint8_t* data = bits.data();
  const nb::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(pool.mutex);
  return {BitMatrix::binary(data, rows, columns, pool.threads), pool, nullptr};
}

PooledMatrix make_ternary(const U8Matrix& plus, const U8Matrix& minus, std::size_t columns, BitPool& pool) {
  check_columns(columns, plus.shape(1));
  require(plus.shape(0) == minus.shape(0) && plus.shape(1) == minus.shape(1),
          "plus and minus have different shapes");
  const std::size_t rows = plus.shape(0);
  const std::uint8_t *p = plus.data(), *m = minus.data();
  const nb::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(pool.mutex);
  return {BitMatrix::ternary(p, m, rows, columns, pool.threads), pool, nullptr};
}

// y [tokens][rows], filled by `product(y)` without the GIL.
template <class Product>
nb::ndarray<nb::numpy, std::int32_t> multiply(const PooledMatrix& self, std::size_t tokens, Product product) {
  const std::size_t rows = self.matrix.rows();
  std::unique_ptr<std::int32_t[]> y(new std::int32_t[tokens * rows]);
  {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(self.pool.mutex);
    product(y.get());
  }
  return new_array(std::move(y), {tokens, rows});
}

nb::ndarray<nb::numpy, std::int32_t> multiply_signs(const PooledMatrix& self, const U8Matrix& x) {
  check_columns(self.matrix.columns(), x.shape(1));
  BitPool& pool = self.pool;
  return multiply(self, x.shape(0), [&, bits = x.data(), tokens = x.shape(0)](std::int32_t* y) {
    self.matrix.multiply_signs(pool.kernels, pool.threads, pool.scratch, bits, tokens, y);
  });
}

nb::ndarray<nb::numpy, std::int32_t> multiply_planes(const PooledMatrix& self, const Planes& x) {
  const std::size_t tokens = x.shape(0), planes = x.shape(1);
  check_columns(self.matrix.columns(), x.shape(2));
  require(planes >= 1 && planes <= kMostPlanes, "planes must be in 1..8");
  BitPool& pool = self.pool;
  return multiply(self, tokens, [&, bits = x.data()](std::int32_t* y) {
    self.matrix.multiply_planes(pool.kernels, pool.threads, pool.scratch, bits, tokens, planes, y);
  });
}

nb::ndarray<nb::numpy, std::int32_t> multiply_int8(PooledMatrix& self, const I8Matrix& x) {
  require(!self.matrix.is_ternary(), "int8 activations need binary weights");
  require(x.shape(1) == self.matrix.columns(), "x and the matrix disagree in columns");
  BitPool& pool = self.pool;
  return multiply(self, x.shape(0), [&, codes = x.data(), tokens = x.shape(0)](std::int32_t* y) {
    const std::size_t columns = self.matrix.columns();
    if (columns > SignMatrix::kMostColumns) {
      std::uint8_t* bits = pool.scratch.bytes.reserve(tokens * kMostPlanes * ((columns + 7) / 8));
      pack_planes(pool.kernels, pool.threads, codes, tokens, columns, kMostPlanes, bits);
      return self.matrix.multiply_planes(pool.kernels, pool.threads, pool.scratch, bits, tokens, kMostPlanes,
                                         y);
    }
    if (self.signs == nullptr) self.signs = std::make_unique<SignMatrix>(self.matrix, pool.threads);
    self.signs->multiply(pool.engine, pool.threads, pool.scratch, codes, tokens, y);
  });
}

nb::ndarray<nb::numpy, std::uint8_t> pack_sign_rows(const F32Matrix& x, BitPool& pool) {
  const std::size_t tokens = x.shape(0), columns = x.shape(1), bytes = (columns + 7) / 8;
  const float* from = x.data();
  std::unique_ptr<std::uint8_t[]> bits(new std::uint8_t[tokens * bytes]);
  bool numbers = false;
  {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(pool.mutex);
    numbers = pack_signs(pool.kernels, pool.threads, from, tokens, columns, bits.get());
  }
  require(numbers, "x holds NaN");
  return new_array(std::move(bits), {tokens, bytes});
}

nb::ndarray<nb::numpy, std::uint8_t> pack_plane_rows(const I8Matrix& codes, std::size_t planes,
                                                     BitPool& pool) {
  require(planes >= 1 && planes <= kMostPlanes, "planes must be in 1..8");
  const std::size_t tokens = codes.shape(0), columns = codes.shape(1), bytes = (columns + 7) / 8;
  const std::int8_t* from = codes.data();
  std::unique_ptr<std::uint8_t[]> bits(new std::uint8_t[tokens * planes * bytes]);
  bool fit = false;
  {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(pool.mutex);
    fit = pack_planes(pool.kernels, pool.threads, from, tokens, columns, planes, bits.get());
  }
  require(fit, "a code needs more bits than there are planes");
  return new_array(std::move(bits), {tokens, planes, bytes});
}

}  // namespace

void bind_binary(nb::module_& m) {
  nb::class_<BitPool>(m, "BitPool")
      .def(nb::init<std::size_t, const std::string&>(), "threads"_a, "isa"_a)
      .def_prop_ro("isa", [](const BitPool& pool) { return std::string(pool.kernels.name); });
  nb::class_<PooledMatrix>(m, "BitMatrix")
      .def_static("binary", &make_binary, "bits"_a.noconvert(), "columns"_a, "pool"_a, nb::keep_alive<0, 3>())
      .def_static("ternary", &make_ternary, "plus"_a.noconvert(), "minus"_a.noconvert(), "columns"_a,
                  "pool"_a, nb::keep_alive<0, 4>())
      .def("multiply_signs", &multiply_signs, "x"_a.noconvert())
      .def("multiply_planes", &multiply_planes, "x"_a.noconvert())
      .def("multiply_int8", &multiply_int8, "x"_a.noconvert());
  m.def("pack_signs", &pack_sign_rows, "x"_a.noconvert(), "pool"_a);
  m.def("pack_planes", &pack_plane_rows, "codes"_a.noconvert(), "planes"_a, "pool"_a);
}

}  // namespace bitnet
