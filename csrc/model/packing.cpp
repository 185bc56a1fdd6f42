// Weights from the checkpoint's layout into the kernels'.
#include <algorithm>
#include <cstring>
#include <utility>

#include "bit_transpose.h"
#include "linear.h"

namespace bitnet {
namespace {

// One block (128 weights) of each of the rows that share the packed bytes. Ternary: four rows, 32 bytes.
void repack_ternary(const std::uint8_t* packed, std::uint8_t* const rows[], std::size_t offset) {
  for (unsigned i = 0; i < 4; ++i) {
    std::uint8_t* out = rows[i] + offset;
    for (std::size_t j = 0; j < kBlockBytes; ++j) {
      unsigned byte = 0;
      for (unsigned field = 0; field < 4; ++field)
        byte |= ((packed[32 * field + j] >> (2 * i)) & 3u) << (2 * field);
      out[j] = static_cast<std::uint8_t>(byte);
    }
  }
}

// Binary: eight rows, 16 bytes.
void repack_binary(const std::uint8_t* packed, std::uint8_t* const rows[], std::size_t offset) {
  for (std::size_t j = 0; j < kSignBlockBytes; ++j) {
    std::uint64_t columns = 0;  // byte f is column 16 f + j, its bit i the code of row i
    for (unsigned f = 0; f < 8; ++f) columns |= std::uint64_t{packed[16 * f + j]} << (8 * f);
    const std::uint64_t codes = transpose_bits(columns);
    for (unsigned i = 0; i < 8; ++i) rows[i][offset + j] = static_cast<std::uint8_t>(codes >> (8 * i));
  }
}

// The rows of one line of packed bytes, one column group of them.
void repack_line(const Linear& linear, const std::uint8_t* packed, std::uint8_t* const rows[]) {
  const bool binary = linear.recipe.weights == WeightKind::binary;
  const auto repack = binary ? repack_binary : repack_ternary;
  const std::size_t columns = linear.group_columns(), bytes = binary ? kSignBlockBytes : kBlockBytes;
  std::size_t block = 0;
  for (; (block + 1) * kBlockWeights <= columns; ++block)
    repack(packed + block * kBlockWeights, rows, block * bytes);
  if (block * kBlockWeights == columns) return;
  std::uint8_t padded[kBlockWeights];
  std::fill(padded, padded + kBlockWeights, std::uint8_t{0x55});  // ternary: code 1, value 0
  std::copy(packed + block * kBlockWeights, packed + columns, padded);
  repack(padded, rows, block * bytes);
}

}  // namespace

Linear Linear::from_packed(const std::uint8_t* packed, std::size_t rows, std::size_t columns,
                           const LinearRecipe& recipe, const std::vector<float>& scales,
                           std::vector<float> bias, ThreadPool& pool) {
  Linear linear;
  linear.recipe = recipe;
  linear.rows = rows;
  linear.columns = columns;
  linear.bias = std::move(bias);
  if (recipe.row_groups > 1)
    for (float scale : scales) linear.scales.insert(linear.scales.end(), rows / recipe.row_groups, scale);
  else
    linear.scales = scales;
  const std::size_t together = recipe.weights == WeightKind::binary ? 8 : 4, lines = rows / together;
  const std::size_t row_bytes = linear.row_bytes();
  linear.weights = Buffer<std::uint8_t>(recipe.column_groups * rows * row_bytes);
  pool.run(lines, [&](std::size_t r, std::size_t) {
    for (std::size_t group = 0; group < recipe.column_groups; ++group) {
      std::uint8_t* out[8];
      for (std::size_t i = 0; i < together; ++i)
        out[i] = linear.weights.data() + (group * rows + r + i * lines) * row_bytes;
      repack_line(linear, packed + r * columns + group * linear.group_columns(), out);
    }
  });
  return linear;
}

void Linear::add_columns(const std::uint8_t* packed, ThreadPool& pool) {
  constexpr std::size_t kTaskColumns = 64;
  by_column = Buffer<std::uint8_t>(columns * column_bytes());
  const std::size_t quarter = rows / 4;
  pool.run((columns + kTaskColumns - 1) / kTaskColumns, [&](std::size_t task, std::size_t) {
    const std::size_t first = task * kTaskColumns, last = std::min(first + kTaskColumns, columns);
    // code 1, value 0, in the rows of the last chunk that do not exist
    std::fill(by_column.data() + first * column_bytes(), by_column.data() + last * column_bytes(),
              std::uint8_t{0x55});
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t field = row % kChunkRows / kChunkBytes;
      const std::size_t byte = row / kChunkRows * kChunkBytes + row % kChunkBytes;
      const std::uint8_t* source = packed + row % quarter * columns;
      const unsigned shift = static_cast<unsigned>(2 * (row / quarter));
      const unsigned clear = ~(3u << (2 * field));
      for (std::size_t column = first; column < last; ++column) {
        std::uint8_t& to = by_column.data()[column * column_bytes() + byte];
        to = static_cast<std::uint8_t>((to & clear) | (((source[column] >> shift) & 3u) << (2 * field)));
      }
    }
  });
}

}  // namespace bitnet
