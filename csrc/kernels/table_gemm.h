// Ternary GEMM for many tokens by tables over tokens. x86 only: the AVX files include it inside their
// anonymous namespaces, as they do float_kernels.h.
//
// The four weights of one byte can meet a token's four activations in 3^4 = 81 ways. For a block of tokens
// all 81 sums are built as vectors with one lane a token; a row then takes its share of these four columns
// for all tokens with one load and one add. Building costs 81 / rows.
//
// The weight byte itself, as it lies in memory for decoding, is the index. A table so spans 256 entries, but
// the 175 with a code 3 are never touched and cost no cache.
//
// int16 holds the sums of 256 columns: 64 tables of at most 4 * 127 each make 32512 < 2^15. They are then
// added to int32.

#include "token_vectors.h"

constexpr std::size_t kTables = 8;  // a pass: half as many would visit the sums twice as often
constexpr std::size_t kColumnsPerPass = 4 * kTables;

// As no digit is 3, the low six bits of a byte take 27 of 64 values: tables at equal alignment would fight
// for 27 of the 64 sets of an L1 cache. These starts spread them over all sets (277 against 233 GMAC/s).
constexpr std::size_t kTableStart[kTables] = {0,        256 + 21,  512 + 42,  768 + 63,
                                              1024 + 3, 1280 + 12, 1536 + 48, 1792 + 15};
constexpr std::size_t kTableEntries = kTables * 256 + 64;

// table[byte][token] = origin + sum of (code - 1) * x over the byte's four fields; x[field] points at the
// tokens.
template <class Entry, class Element>
void build_table(const std::int8_t* const x[4], Element* table) {
  using Register = typename Entry::Register;
  for (std::size_t t = 0; t < Entry::kTokens; t += Register::kTokens) {
    Register multiple[4][3], low[9];
    for (std::size_t field = 0; field < 4; ++field) {
      multiple[field][2] = Register::widen(x[field] + t);
      multiple[field][1] = Register::zero();
      multiple[field][0] = Register::zero() - multiple[field][2];
    }
    for (std::size_t i = 0; i < 9; ++i) low[i] = Register::origin() + multiple[0][i % 3] + multiple[1][i / 3];
    for (std::size_t i = 0; i < 9; ++i) {
      const Register high = multiple[2][i % 3] + multiple[3][i / 3];
      Element* to = table + (16 * (i % 3) + 64 * (i / 3)) * Entry::kTokens + t;
      for (std::size_t j = 0; j < 9; ++j) (high + low[j]).store(to + (j % 3 + 4 * (j / 3)) * Entry::kTokens);
    }
  }
}

// The tables of bytes `byte`..`byte + 7` of every row.
template <class Entry, class Element>
void build_tables(const std::int8_t* x, std::size_t columns, std::size_t tokens, std::size_t byte,
                  Element* tables) {
  alignas(64) std::int8_t transposed[4][kTables][Entry::kTokens];
  const std::size_t column = byte / kBlockBytes * kBlockWeights + byte % kBlockBytes;
  for (std::size_t field = 0; field < 4; ++field)
    for (std::size_t t = 0; t < Entry::kTokens; t += 16)
      transpose_tokens<Entry::kTokens>(x + t * columns + column + field * kBlockBytes, columns,
                                       tokens > t ? tokens - t : 0, &transposed[field][0][t]);
  for (std::size_t i = 0; i < kTables; ++i) {
    const std::int8_t* const fields[4] = {transposed[0][i], transposed[1][i], transposed[2][i],
                                          transposed[3][i]};
    build_table<Entry>(fields, tables + kTableStart[i] * Entry::kTokens);
  }
}

// What tells one kind of tables from another: weights a byte, bits of a table's index, tables of a pass
// (eight bytes of a row), where a table begins and how many entries all of them take, and what makes them.
struct TernaryTables {
  static constexpr std::size_t kByteWeights = 4, kBits = 8, kCount = kTables, kEntries = kTableEntries;
  static constexpr std::size_t start(std::size_t i) { return kTableStart[i]; }
  template <class Entry>
  static void build(const std::int8_t* x, std::size_t columns, std::size_t tokens, std::size_t byte,
                    std::int16_t* tables) {
    build_tables<Entry>(x, columns, tokens, byte, tables);
  }
};

// Adds an entry of each table to every row's int16 sums, starting them (First) or handing them on to the
// int32 sums (Last).
template <class Tables, class Entry, bool First, bool Last>
void look_up(const std::uint8_t* weights, std::size_t rows, std::size_t row_bytes, const std::int16_t* tables,
             std::int16_t* partial, std::int32_t* total) {
  constexpr std::uint64_t kEntryBytes = Entry::kTokens * sizeof(std::int16_t);
  constexpr std::uint64_t kOffsets = ((std::uint64_t{1} << Tables::kBits) - 1) * kEntryBytes;
  const char* start = reinterpret_cast<const char*>(tables);
  for (std::size_t r = 0; r < rows; ++r) {
    std::uint64_t bytes;
    std::memcpy(&bytes, weights + r * row_bytes, sizeof(bytes));
    if (First) _mm_prefetch(reinterpret_cast<const char*>(weights + r * row_bytes + 64), _MM_HINT_T1);
    Entry sum = First ? Entry::zero() : Entry::load(partial + r * Entry::kTokens);
    for (std::size_t i = 0; i < Tables::kCount; ++i) {
      // index i times kEntryBytes, by one shift and one mask
      const std::uint64_t index = std::uint64_t{1} << Tables::kBits * i;
      const std::uint64_t shifted =
          index <= kEntryBytes ? bytes * (kEntryBytes / index) : bytes / (index / kEntryBytes);
      const char* entry = start + Tables::start(i) * kEntryBytes + (shifted & kOffsets);
      sum = sum + Entry::load(reinterpret_cast<const std::int16_t*>(entry));
    }
    if (Last)
      sum.add_to(total + r * Entry::kTokens);
    else
      sum.store(partial + r * Entry::kTokens);
  }
}

template <class Tables, class Entry>
void table_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                std::size_t tokens, void* scratch, std::int32_t* y, std::size_t y_stride) {
  constexpr std::size_t kPassColumns = 8 * Tables::kByteWeights, kFoldPasses = 256 / kPassColumns;
  auto* tables = static_cast<std::int16_t*>(scratch);
  std::int16_t* partial = tables + Tables::kEntries * Entry::kTokens;
  auto* total = reinterpret_cast<std::int32_t*>(partial + rows * Entry::kTokens);
  std::memset(total, 0, rows * Entry::kTokens * sizeof(total[0]));
  const std::size_t row_bytes = columns / Tables::kByteWeights, passes = columns / kPassColumns;
  for (std::size_t pass = 0; pass < passes; ++pass) {
    Tables::template build<Entry>(x, columns, tokens, pass * 8, tables);
    // A block of 128 columns is two passes or more, so none is both the first and the last of a fold.
    auto* add = look_up<Tables, Entry, false, false>;
    if (pass % kFoldPasses == 0) add = look_up<Tables, Entry, true, false>;
    if ((pass + 1) % kFoldPasses == 0 || pass + 1 == passes) add = look_up<Tables, Entry, false, true>;
    add(weights + pass * 8, rows, row_bytes, tables, partial, total);
  }
  store_sums<Entry>(total, rows, tokens, y, y_stride);
}

void ternary_gemm_many(const std::uint8_t* weights, std::size_t rows, std::size_t columns,
                       const std::int8_t* x, std::size_t tokens, void* scratch, std::int32_t* y,
                       std::size_t y_stride) {
  static_assert(kTableEntries * i16x32::kTokens * sizeof(std::int16_t) == kTableBytes,
                "scratch of kernels.h");
  const auto gemm =
      tokens <= i16x16::kTokens ? table_gemm<TernaryTables, i16x16> : table_gemm<TernaryTables, i16x32>;
  gemm(weights, rows, columns, x, tokens, scratch, y, y_stride);
}
