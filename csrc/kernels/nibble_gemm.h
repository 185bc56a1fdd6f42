// nibble_gemm over a file's own nibble_row<Tokens>; included inside anonymous namespaces.

void nibble_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                 const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t n = 0; n < rows; ++n) {
    const std::uint8_t* row = weights + n * (columns / 2);
    std::size_t t = 0;
    for (; t + 4 <= tokens; t += 4)
      nibble_row<4>(row, columns, x + t * columns, x_sums + t, y + t * y_stride + n, y_stride);
    for (; t < tokens; ++t)
      nibble_row<1>(row, columns, x + t * columns, x_sums + t, y + t * y_stride + n, y_stride);
  }
}
