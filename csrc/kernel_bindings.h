// Single kernels and projections as functions of bitnet._core.
#pragma once

#include <nanobind/nanobind.h>

namespace bitnet {

void bind_kernels(nanobind::module_& m);

}  // namespace bitnet
