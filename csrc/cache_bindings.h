// The cache of one sequence, and its quantiser, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace bitnet {

void bind_cache(nanobind::module_& m);

}  // namespace bitnet
