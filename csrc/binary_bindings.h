#pragma once

#include <nanobind/nanobind.h>

namespace bitnet {

// Adds BitPool, BitMatrix, pack_signs and pack_planes to the module.
void bind_binary(nanobind::module_& m);

}  // namespace bitnet
