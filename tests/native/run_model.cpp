// Runs a whole model without Python: reads the arrays that tests/parity/test_neon.py wrote, prints the
// logits of one prompt as float32 bytes. For instruction sets of other machines under an emulator.
//
//   run_model ISA THREADS < model.bin > logits.bin
//
// model.bin, little endian: int64 shape[9] (vocab, hidden, intermediate, layers, heads, kv_heads, head_dim,
// positions, prompt length), float32 eps, then the arrays in the order they are read below.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/transformer.h"

namespace {

template <class T>
std::vector<T> read(std::size_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != count)
    throw std::runtime_error("model.bin is too short");
  return values;
}

bitnet::Linear read_linear(std::size_t rows, std::size_t columns, bitnet::ThreadPool& pool) {
  const float scale = read<float>(1)[0];
  const std::vector<std::uint8_t> packed = read<std::uint8_t>(rows / 4 * columns);
  return bitnet::Linear::from_packed(packed.data(), rows, columns, scale, {}, pool);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::size_t threads = static_cast<std::size_t>(std::atoi(argv[2]));
  const std::vector<std::int64_t> shape = read<std::int64_t>(9);
  const auto size = [&](std::size_t i) { return static_cast<std::size_t>(shape[i]); };
  const bitnet::Config config{size(0),
                              size(1),
                              size(2),
                              size(3),
                              size(4),
                              size(5),
                              size(6),
                              size(7),
                              read<float>(1)[0],
                              bitnet::Activation::relu2,
                              bitnet::CacheType::float32,
                              bitnet::HeadType::full};
  const std::size_t hidden = config.hidden_size, ffn = config.intermediate_size, count = size(8);
  bitnet::ThreadPool pool(threads);
  bitnet::Weights weights;
  const std::vector<std::uint16_t> embedding = read<std::uint16_t>(config.vocab_size * hidden);
  weights.embedding.bf16 = weights.head.bf16 = embedding.data();
  weights.final_norm = read<float>(hidden);
  weights.rope_cos = read<float>(config.max_positions * config.head_dim / 2);
  weights.rope_sin = read<float>(config.max_positions * config.head_dim / 2);
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    bitnet::Layer block;
    block.input_norm = read<float>(hidden);
    block.attention_sub_norm = read<float>(config.query_size());
    block.post_attention_norm = read<float>(hidden);
    block.feed_forward_sub_norm = read<float>(ffn);
    block.query = read_linear(config.query_size(), hidden, pool);
    block.key = read_linear(config.key_value_size(), hidden, pool);
    block.value = read_linear(config.key_value_size(), hidden, pool);
    block.output = read_linear(hidden, config.query_size(), pool);
    block.gate = read_linear(ffn, hidden, pool);
    block.up = read_linear(ffn, hidden, pool);
    block.down = read_linear(hidden, ffn, pool);
    weights.layers.push_back(std::move(block));
  }
  const std::vector<std::int32_t> ids = read<std::int32_t>(count);
  bitnet::Transformer model(config, std::move(weights), threads, bitnet::select_kernels(argv[1]));
  bitnet::KvCache cache(config, count);
  std::vector<float> logits(count * config.vocab_size);
  model.forward({{&cache, ids.data(), count}}, true, logits.data());
  std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
  return 0;
}
