#include "core/record_array.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/philox.h"
#include "core/thread_pool.h"

namespace te {
namespace {

constexpr int64_t kBlock = 256;  // rows per unit of parallel work

template <typename Fn>
void for_rows(int64_t n, int num_threads, const Fn& fn) {
  parallel_for((n + kBlock - 1) / kBlock, num_threads, [&](int64_t block) {
    const int64_t end = std::min(n, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i) fn(i);
  });
}

}  // namespace

void initial_weights(const UniformInit& init, uint32_t table, int64_t row, int64_t dim,
                     float* out) {
  const uint64_t r = static_cast<uint64_t>(row);
  for (int64_t c = 0; c < dim; c += 4) {
    const PhiloxWords words =
        philox4x32(static_cast<uint32_t>(c / 4), table, static_cast<uint32_t>(r),
                   static_cast<uint32_t>(r >> 32), init.seed);
    const int64_t lanes = std::min<int64_t>(4, dim - c);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const float u = static_cast<float>(words.v[lane] >> 8) * 0x1p-24f;
      out[c + lane] = init.lo + init.scale * u;
    }
  }
}

RecordArray::RecordArray(int64_t num_slots, int64_t dim, WeightType type, int64_t state_floats)
    : num_slots_(num_slots),
      dim_(dim),
      type_(type),
      state_floats_(state_floats),
      weights_(static_cast<size_t>(num_slots * dim * te::weight_bytes(type))),
      state_(static_cast<size_t>(num_slots * state_floats)) {
  TE_CHECK(num_slots > 0 && dim > 0 && state_floats >= 0, "records have a shape");
  TE_CHECK(type != WeightType::kInt8 || state_floats >= 2, "int8 rows keep scale and bias");
}

void RecordArray::gather(const int32_t* slots, int64_t n, uint8_t* records, int num_threads) const {
  const size_t weight_bytes = static_cast<size_t>(row_bytes());
  const size_t state_bytes = static_cast<size_t>(state_floats_) * 4;
  for_rows(n, num_threads, [&](int64_t i) {
    require_slot(slots[i]);
    uint8_t* out = records + i * record_bytes();
    std::memcpy(out, weights_.data() + slots[i] * row_bytes(), weight_bytes);
    if (state_bytes != 0) {
      std::memcpy(out + weight_bytes, state_.data() + slots[i] * state_floats_, state_bytes);
    }
  });
}

void RecordArray::scatter(const int32_t* slots, int64_t n, const uint8_t* records, const bool* keep,
                          int num_threads) {
  const size_t weight_bytes = static_cast<size_t>(row_bytes());
  const size_t state_bytes = static_cast<size_t>(state_floats_) * 4;
  for_rows(n, num_threads, [&](int64_t i) {
    if (keep != nullptr && !keep[i]) return;
    require_slot(slots[i]);
    const uint8_t* in = records + i * record_bytes();
    std::memcpy(weights_.data() + slots[i] * row_bytes(), in, weight_bytes);
    if (state_bytes != 0) {
      std::memcpy(state_.data() + slots[i] * state_floats_, in + weight_bytes, state_bytes);
    }
  });
}

void RecordArray::initialise(const int32_t* slots, int64_t n, const uint32_t* tables,
                             const int64_t* rows, const bool* skip, const UniformInit& init,
                             int num_threads) {
  parallel_for((n + kBlock - 1) / kBlock, num_threads, [&](int64_t block) {
    std::vector<float> values(static_cast<size_t>(dim_));
    const int64_t end = std::min(n, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i) {
      if (skip != nullptr && skip[i]) continue;
      require_slot(slots[i]);
      float* state = state_.data() + slots[i] * state_floats_;
      initial_weights(init, tables[i], rows[i], dim_, values.data());
      std::fill_n(state, state_floats_, 0.0f);
      encode_row(type_, values.data(), dim_, weights_.data() + slots[i] * row_bytes(), state);
    }
  });
}

}  // namespace te
