// How fast this machine reads memory: the ceiling of decoding, which reads every weight once a token.
#pragma once

#include <cstddef>

namespace bitnet {

// Gigabytes (1e9 bytes) a second, the best of five passes of `threads` threads over `megabytes` MB (1e6
// bytes); choose several times the last-level cache.
double read_bandwidth(std::size_t threads, std::size_t megabytes);

}  // namespace bitnet
