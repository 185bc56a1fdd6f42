#pragma once

#include <nanobind/nanobind.h>

namespace bitnet {

// Adds LayerPool, TernaryLinear, multiply_together and head_product to the module.
void bind_layers(nanobind::module_& m);

}  // namespace bitnet
