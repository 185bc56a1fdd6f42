// Prefetching for ternary_columns. x86 only: the AVX files include it inside their anonymous namespaces.

// Fetches the lines of the columns to come, a few at a time while the present ones are computed.
class ColumnFetcher {
 public:
  ColumnFetcher(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList next)
      : matrix_(matrix), stride_(stride), chunks_(chunks), next_(next) {}

  void fetch(std::size_t lines) {
    for (; lines > 0 && column_ < next_.count; --lines) {
      const std::uint8_t* line = matrix_ + next_.columns[column_] * stride_ + chunk_ * kChunkBytes;
      _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
      if (++chunk_ == chunks_) {
        chunk_ = 0;
        ++column_;
      }
    }
  }

 private:
  const std::uint8_t* matrix_;
  std::size_t stride_, chunks_, column_ = 0, chunk_ = 0;
  ColumnList next_;
};
