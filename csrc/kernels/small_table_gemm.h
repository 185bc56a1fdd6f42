// ternary_gemm_small: the tables of table_gemm.h with entries of one byte. x86 only: the AVX files include it
// behind table_gemm.h, inside their anonymous namespaces.
//
// Codes of at most kSmallCode = 12 make sums of four columns of at most 48, so that a byte holds a sum, a
// register twice as many tokens, and an entry of 64 tokens takes no more cache than one of 32 in int16: the
// look-ups, which are most of the work, serve twice as many products.
//
// Entries are stored plus 48, 0..96, and two of them added byte by byte, 0..192. Bytes then go to int16 in
// pairs: both bytes added as they lie (even + 256 odd), and the odd ones once more, shifted down. The even
// sums are the difference, and all this may wrap around: what counts is that the sums themselves fit. 2560
// columns of at most 12 make 30720 < 2^15; they are then added to int32.

constexpr std::size_t kSmallPassesPerFold = 2560 / kColumnsPerPass;
constexpr int kByteOrigin = 4 * kSmallCode;  // what a table stores for a sum of 0

// An entry of 32 tokens, and one of 64: one register with AVX-512, two without.
struct u8x32 {
  using Register = u8x32;
  static constexpr std::size_t kTokens = 32;
  __m256i all;

  static u8x32 zero() { return {_mm256_setzero_si256()}; }
  static u8x32 origin() { return {_mm256_set1_epi8(kByteOrigin)}; }
  static u8x32 load(const std::uint8_t* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p))};
  }
  static u8x32 widen(const std::int8_t* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p))};
  }
  u8x32 operator+(u8x32 other) const { return {_mm256_add_epi8(all, other.all)}; }
  u8x32 operator-(u8x32 other) const { return {_mm256_sub_epi8(all, other.all)}; }
  u8x32 add_pairs(u8x32 other) const { return {_mm256_add_epi16(all, other.all)}; }
  u8x32 odd_bytes() const { return {_mm256_srli_epi16(all, 8)}; }
  void store(std::uint8_t* p) const { _mm256_store_si256(reinterpret_cast<__m256i*>(p), all); }
};

#if defined(__AVX512BW__)
struct u8x64 {
  using Register = u8x64;
  static constexpr std::size_t kTokens = 64;
  __m512i all;

  static u8x64 zero() { return {_mm512_setzero_si512()}; }
  static u8x64 origin() { return {_mm512_set1_epi8(kByteOrigin)}; }
  static u8x64 load(const std::uint8_t* p) { return {_mm512_load_si512(p)}; }
  static u8x64 widen(const std::int8_t* p) { return {_mm512_load_si512(p)}; }
  u8x64 operator+(u8x64 other) const { return {_mm512_add_epi8(all, other.all)}; }
  u8x64 operator-(u8x64 other) const { return {_mm512_sub_epi8(all, other.all)}; }
  u8x64 add_pairs(u8x64 other) const { return {_mm512_add_epi16(all, other.all)}; }
  u8x64 odd_bytes() const { return {_mm512_srli_epi16(all, 8)}; }
  void store(std::uint8_t* p) const { _mm512_store_si512(p, all); }
};
#else
struct u8x64 {
  using Register = u8x32;
  static constexpr std::size_t kTokens = 64;
  u8x32 low, high;

  static u8x64 zero() { return {u8x32::zero(), u8x32::zero()}; }
  static u8x64 load(const std::uint8_t* p) { return {u8x32::load(p), u8x32::load(p + 32)}; }
  u8x64 operator+(u8x64 other) const { return {low + other.low, high + other.high}; }
  u8x64 add_pairs(u8x64 other) const { return {low.add_pairs(other.low), high.add_pairs(other.high)}; }
  u8x64 odd_bytes() const { return {low.odd_bytes(), high.odd_bytes()}; }
  void store(std::uint8_t* p) const {
    low.store(p);
    high.store(p + 32);
  }
};
#endif

// Adds an entry of each table to every row's sums, [rows][2][tokens] bytes: of both, then of the odd ones.
template <class Entry, bool First>
void look_up_small(const std::uint8_t* weights, std::size_t rows, std::size_t row_bytes,
                   const std::uint8_t* tables, std::uint8_t* sums) {
  constexpr std::uint64_t kEntryBytes = Entry::kTokens;
  for (std::size_t r = 0; r < rows; ++r, sums += 2 * kEntryBytes) {
    std::uint64_t bytes;
    std::memcpy(&bytes, weights + r * row_bytes, sizeof(bytes));
    if (First) _mm_prefetch(reinterpret_cast<const char*>(weights + r * row_bytes + 64), _MM_HINT_T1);
    const auto entry = [&](std::size_t i) {
      // byte i times kEntryBytes, by one shift and one mask
      const std::uint64_t shifted =
          i == 0 ? bytes * kEntryBytes : bytes / ((std::uint64_t{1} << 8 * i) / kEntryBytes);
      return Entry::load(tables + kTableStart[i] * kEntryBytes + (shifted & 255 * kEntryBytes));
    };
    Entry both = First ? Entry::zero() : Entry::load(sums);
    Entry odd = First ? Entry::zero() : Entry::load(sums + kEntryBytes);
    for (std::size_t i = 0; i < kTables; i += 2) {
      const Entry two = entry(i) + entry(i + 1);
      both = both.add_pairs(two);
      odd = odd.add_pairs(two.odd_bytes());
    }
    both.store(sums);
    odd.store(sums + kEntryBytes);
  }
}

// Adds one row's sums, less `origin`, to int32. Interleaving the even and the odd ones makes eight
// consecutive tokens of each half of a register.
template <class Entry>
void fold_small(const std::uint8_t* sums, int origin, std::int32_t* total) {
  const __m256i origins = _mm256_set1_epi16(static_cast<short>(origin));
  const auto add = [](__m128i eight, std::int32_t* p) {
    auto* to = reinterpret_cast<__m256i*>(p);
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), _mm256_cvtepi16_epi32(eight)));
  };
  for (std::size_t t = 0; t < Entry::kTokens; t += 32) {
    const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + t));
    const __m256i odd = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + Entry::kTokens + t));
    const __m256i even = _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8));
    const __m256i evens = _mm256_sub_epi16(even, origins), odds = _mm256_sub_epi16(odd, origins);
    const __m256i low = _mm256_unpacklo_epi16(evens, odds), high = _mm256_unpackhi_epi16(evens, odds);
    add(_mm256_castsi256_si128(low), total + t);
    add(_mm256_castsi256_si128(high), total + t + 8);
    add(_mm256_extracti128_si256(low, 1), total + t + 16);
    add(_mm256_extracti128_si256(high, 1), total + t + 24);
  }
}

template <class Entry>
void small_table_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns,
                      const std::int8_t* x, std::size_t tokens, void* scratch, std::int32_t* y,
                      std::size_t y_stride) {
  auto* tables = static_cast<std::uint8_t*>(scratch);
  std::uint8_t* sums = tables + kTableEntries * Entry::kTokens;
  auto* total = reinterpret_cast<std::int32_t*>(sums + rows * 2 * Entry::kTokens);
  std::memset(total, 0, rows * Entry::kTokens * sizeof(total[0]));
  const std::size_t row_bytes = columns / 4, passes = columns / kColumnsPerPass;
  for (std::size_t first = 0; first < passes; first += kSmallPassesPerFold) {
    const std::size_t count = passes - first < kSmallPassesPerFold ? passes - first : kSmallPassesPerFold;
    for (std::size_t pass = first; pass < first + count; ++pass) {
      build_tables<Entry>(x, columns, tokens, pass * kTables, tables);
      const auto add = pass == first ? look_up_small<Entry, true> : look_up_small<Entry, false>;
      add(weights + pass * kTables, rows, row_bytes, tables, sums);
    }
    const int origin = static_cast<int>(count * kTables) * kByteOrigin;
    for (std::size_t r = 0; r < rows; ++r)
      fold_small<Entry>(sums + r * 2 * Entry::kTokens, origin, total + r * Entry::kTokens);
  }
  store_sums<Entry>(total, rows, tokens, y, y_stride);
}

void ternary_gemm_small(const std::uint8_t* weights, std::size_t rows, std::size_t columns,
                        const std::int8_t* x, std::size_t tokens, void* scratch, std::int32_t* y,
                        std::size_t y_stride) {
  static_assert(kTableEntries * u8x64::kTokens == kTableBytes && u8x64::kTokens == kSmallTokens,
                "scratch of kernels.h");
  const auto gemm = tokens <= u8x32::kTokens ? small_table_gemm<u8x32> : small_table_gemm<u8x64>;
  gemm(weights, rows, columns, x, tokens, scratch, y, y_stride);
}

// A Zen 4 core, 1280 rows of 2560: 350 GMAC/s for 32 tokens with any of these instruction sets, as much as
// their other kernels reach at 17 tokens.
constexpr std::size_t kFewestSmall = 17;
