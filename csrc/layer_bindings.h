// What the layers of a model that another library runs have in common.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <mutex>
#include <string>

#include "model/linear.h"
#include "weight_arrays.h"

namespace bitnet {

// Threads, kernels and scratch that all layers of a process share. One product at a time; callers wait.
struct LayerPool {
  LayerPool(std::size_t count, const std::string& isa);

  const Kernels& kernels;
  ThreadPool threads;
  QuantizedRows rows;
  std::mutex mutex;
};

// Codes in the kernels' layout, with one scale.
struct TernaryLinear {
  using Packed =
      nanobind::ndarray<const std::uint8_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;

  TernaryLinear(const Packed& packed, float scale, LayerPool& owner);

  LayerPool& pool;  // kept alive by the Python object
  Linear linear;
};

// Adds LayerPool, TernaryLinear, multiply_together and head_product to the module.
void bind_layers(nanobind::module_& m);

// Adds DecoderLayer, once bind_layers has run.
void bind_decoder_layer(nanobind::module_& m);

}  // namespace bitnet
