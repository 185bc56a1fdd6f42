// sign_gemm over a file's own sign_row<Tokens>; included inside anonymous namespaces.

void sign_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
               const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  std::size_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    for (std::size_t n = 0; n < rows; ++n)
      sign_row<4>(weights + n * (columns / 8), columns, x + t * columns, x_sums + t, y + t * y_stride + n,
                  y_stride);
  for (; t < tokens; ++t)
    for (std::size_t n = 0; n < rows; ++n)
      sign_row<1>(weights + n * (columns / 8), columns, x + t * columns, x_sums + t, y + t * y_stride + n,
                  y_stride);
}
