// Packing one token's bits, eight columns at a time: the whole of it for scalar, the rest of a vector for the
// others. They include it inside their anonymous namespaces.

bool pack_few_signs(const float* x, std::size_t n, std::uint8_t* bits) {
  bool numbers = true;
  for (std::size_t i = 0; i < n; i += 8) {
    unsigned byte = 0;
    for (std::size_t k = i; k < n && k < i + 8; ++k) {
      byte |= (x[k] > 0.0f ? 1u : 0u) << (k - i);
      numbers &= x[k] == x[k];
    }
    bits[i / 8] = static_cast<std::uint8_t>(byte);
  }
  return numbers;
}

bool pack_few_planes(const std::int8_t* codes, std::size_t n, std::size_t planes, std::size_t plane_bytes,
                     std::uint8_t* bits) {
  const int limit = 1 << (planes - 1);
  bool fits = true;
  for (std::size_t i = 0; i < n; i += 8) {
    for (std::size_t j = 0; j < planes; ++j) {
      unsigned byte = 0;
      for (std::size_t k = i; k < n && k < i + 8; ++k) {
        byte |= ((static_cast<unsigned>(codes[k]) >> j) & 1u) << (k - i);
        fits &= codes[k] >= -limit && codes[k] < limit;
      }
      bits[j * plane_bytes + i / 8] = static_cast<std::uint8_t>(byte);
    }
  }
  return fits;
}
