// sign_gemm for many tokens by tables over tokens. x86 only: the AVX files include it behind table_gemm.h,
// inside their anonymous namespaces.
//
// Four signs can meet a token's four activations in 16 ways. For a block of tokens all 16 sums are built as
// vectors with one lane a token; a row then takes its share of these four columns for all tokens with one
// load and one add, by half a byte of its weights. The sixteen tables of a pass are 16 KB and stay in L1;
// those of whole bytes would halve the look-ups and come from L2.
//
// int16 holds the sums of 256 columns: 256 * 127 = 32512 < 2^15. They are then added to int32.

constexpr std::size_t kSignTables = 16;  // of a pass: both halves of eight bytes

// The tables of bytes `byte`..`byte + 7` of every row: table 2i + h, entry e is the sum of +x where bit f of
// e is 1 and -x where it is 0, x the activations of bit 4h + f of byte i.
template <class Entry>
void build_sign_tables(const std::int8_t* x, std::size_t columns, std::size_t tokens, std::size_t byte,
                       std::int16_t* tables) {
  using Register = typename Entry::Register;
  alignas(64) std::int8_t transposed[8][8][Entry::kTokens];  // [bit][byte]
  const std::size_t column = byte / kSignBlockBytes * kBlockWeights + byte % kSignBlockBytes;
  for (std::size_t bit = 0; bit < 8; ++bit)
    for (std::size_t t = 0; t < Entry::kTokens; t += 16)
      transpose_tokens<Entry::kTokens>(x + t * columns + column + bit * kSignBlockBytes, columns,
                                       tokens > t ? tokens - t : 0, &transposed[bit][0][t]);
  const auto pair = [](Register a, Register b, Register* to) {
    to[3] = a + b;
    to[2] = b - a;
    to[1] = a - b;
    to[0] = Register::zero() - to[3];
  };
  for (std::size_t i = 0; i < kSignTables; ++i) {
    for (std::size_t t = 0; t < Entry::kTokens; t += Register::kTokens) {
      Register x4[4], low[4], high[4];
      for (std::size_t f = 0; f < 4; ++f) x4[f] = Register::widen(&transposed[i % 2 * 4 + f][i / 2][t]);
      pair(x4[0], x4[1], low);
      pair(x4[2], x4[3], high);
      for (std::size_t e = 0; e < 16; ++e)
        (low[e % 4] + high[e / 4]).store(tables + (16 * i + e) * Entry::kTokens + t);
    }
  }
}

struct SignTables {
  static constexpr std::size_t kByteWeights = 8, kBits = 4, kCount = kSignTables, kEntries = 16 * kCount;
  static constexpr std::size_t start(std::size_t i) { return 16 * i; }
  template <class Entry>
  static void build(const std::int8_t* x, std::size_t columns, std::size_t tokens, std::size_t byte,
                    std::int16_t* tables) {
    build_sign_tables<Entry>(x, columns, tokens, byte, tables);
  }
};

void sign_gemm_many(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                    std::size_t tokens, void* scratch, std::int32_t* y, std::size_t y_stride) {
  static_assert(SignTables::kEntries * i16x32::kTokens * sizeof(std::int16_t) <= kTableBytes,
                "scratch of kernels.h");
  constexpr std::size_t kHalf = i16x16::kTokens;
  if (tokens <= kHalf)
    return table_gemm<SignTables, i16x16>(weights, rows, columns, x, tokens, scratch, y, y_stride);
  if constexpr (std::is_same_v<i16x32::Register, i16x32>)
    return table_gemm<SignTables, i16x32>(weights, rows, columns, x, tokens, scratch, y, y_stride);
  // an entry of two registers gains nothing, and its tables take twice the cache
  table_gemm<SignTables, i16x16>(weights, rows, columns, x, kHalf, scratch, y, y_stride);
  table_gemm<SignTables, i16x16>(weights, rows, columns, x + kHalf * columns, tokens - kHalf, scratch,
                                 y + kHalf * y_stride, y_stride);
}
