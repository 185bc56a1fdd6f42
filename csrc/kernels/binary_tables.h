// Binary weights and int8 inputs by tables over tokens. x86 only: the AVX files include it inside their
// anonymous namespaces, as they do float_kernels.h.
//
// Four signs can meet four activations in 16 ways: all 16 sums are built as vectors with one lane a token,
// and a row takes its share of these columns for all tokens with one load and one add, by four bits of its
// word. Eight tables serve a word; they are 8 KB and stay in L1. A whole byte as the index would halve the
// look-ups, but its tables are 16 KB each and come from L2.
//
// int16 holds the sums of seven words: 7 * 32 * 128 = 28672 < 2^15. They are then added to int32.

#include "token_vectors.h"

constexpr std::size_t kSignTables = 8;
constexpr std::size_t kWordsPerFold = 7;
constexpr std::size_t kSignEntryBytes = kSignTableTokens * sizeof(std::int16_t);

// tables[i][nibble][token] = sum of +-x over columns 4i..4i+3 of a word.
void build_sign_tables(const std::int8_t* x, std::size_t columns, std::size_t tokens, std::int16_t* tables) {
  using Register = i16x32::Register;
  alignas(64) std::int8_t transposed[kWordColumns][kSignTableTokens];
  for (std::size_t column = 0; column < kWordColumns; column += 8)
    for (std::size_t t = 0; t < kSignTableTokens; t += 16)
      transpose_tokens<kSignTableTokens>(x + t * columns + column, columns, tokens > t ? tokens - t : 0,
                                         &transposed[column][t]);
  for (std::size_t i = 0; i < kSignTables; ++i) {
    for (std::size_t t = 0; t < kSignTableTokens; t += Register::kTokens) {
      Register column[4], low[4], high[4];
      for (std::size_t j = 0; j < 4; ++j) column[j] = Register::widen(&transposed[4 * i + j][t]);
      const auto signs = [](Register a, Register b, Register* to) {
        to[3] = a + b;
        to[2] = b - a;
        to[1] = a - b;
        to[0] = Register::zero() - to[3];
      };
      signs(column[0], column[1], low);
      signs(column[2], column[3], high);
      for (std::size_t j = 0; j < 16; ++j)
        (low[j % 4] + high[j / 4]).store(tables + (16 * i + j) * kSignTableTokens + t);
    }
  }
}

// Adds an entry of each table to every row's int16 sums, starting them (First) or handing them on to the
// int32 sums (Last). Of each two words the first holds the exclusive or of both.
template <bool First, bool Last>
void add_signs(const std::uint32_t* weights, std::size_t groups, std::size_t words, std::size_t word,
               const std::int16_t* tables, std::int16_t* partial, std::int32_t* total) {
  static_assert(kSignEntryBytes == 64, "the shifts below");
  constexpr std::uint64_t kOffsets = 15 * kSignEntryBytes;
  const char* start = reinterpret_cast<const char*>(tables);
  for (std::size_t group = 0; group < groups; ++group) {
    const std::uint32_t* line = weights + (group * words + word) * kGroupRows;
    for (std::size_t lane = 0; lane < kGroupRows; ++lane, partial += kSignTableTokens) {
      const std::uint64_t bits = word % 2 == 0 ? line[lane] ^ line[kGroupRows + lane] : line[lane];
      const std::uint64_t shifted = bits << 6;  // nibble i times 64 is at bits 4i + 6 and up
      i16x32 sum = First ? i16x32::zero() : i16x32::load(partial);
      for (std::size_t i = 0; i < kSignTables; ++i) {
        const char* entry = start + 16 * i * kSignEntryBytes + ((shifted >> 4 * i) & kOffsets);
        sum = sum + i16x32::load(reinterpret_cast<const std::int16_t*>(entry));
      }
      if (Last)
        sum.add_to(total + (group * kGroupRows + lane) * kSignTableTokens);
      else
        sum.store(partial);
    }
  }
}

void sign_table_gemm(const std::uint32_t* weights, std::size_t rows, std::size_t words, const std::int8_t* x,
                     std::size_t tokens, void* scratch, std::int32_t* y, std::size_t y_stride) {
  static_assert(i16x32::kTokens == kSignTableTokens, "scratch of binary_kernels.h");
  const std::size_t groups = padded_rows(rows) / kGroupRows, columns = words * kWordColumns;
  auto* tables = static_cast<std::int16_t*>(scratch);
  std::int16_t* partial = tables + kSignTables * 16 * kSignTableTokens;
  auto* total = reinterpret_cast<std::int32_t*>(partial + groups * kGroupRows * kSignTableTokens);
  std::memset(total, 0, groups * kGroupRows * kSignTableTokens * sizeof(total[0]));
  for (std::size_t word = 0; word < words; ++word) {
    build_sign_tables(x + word * kWordColumns, columns, tokens, tables);
    const bool first = word % kWordsPerFold == 0;
    const bool last = word % kWordsPerFold == kWordsPerFold - 1 || word + 1 == words;
    const auto add = first && last ? add_signs<true, true>
                     : first       ? add_signs<true, false>
                     : last        ? add_signs<false, true>
                                   : add_signs<false, false>;
    add(weights, groups, words, word, tables, partial, total);
  }
  store_sums<i16x32>(total, rows, tokens, y, y_stride);
}
