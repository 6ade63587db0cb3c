#include "kernels/kernels.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>

#include "core/check.h"
#include "core/float_state.h"
#include "core/plain_vector.h"
#include "core/thread_pool.h"
#include "kernels/isa.h"
#include "kernels/scratch.h"

namespace te {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kFewIds = 16384;
constexpr int64_t kFewBytes = 1 << 20;

struct Isa {
  const char* name;
  const KernelTable* table;
  bool available;
};

const std::vector<Isa>& isas() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  static const std::vector<Isa> all = {
      {"avx512", &kAvx512Kernels,
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")},
      {"avx2", &kAvx2Kernels, __builtin_cpu_supports("avx2") != 0},
      {"baseline", &kBaselineKernels, true}};
#else
  static const std::vector<Isa> all = {{"baseline", &kBaselineKernels, true}};
#endif
  return all;
}

std::atomic<const Isa*>& chosen() {
  static std::atomic<const Isa*> isa = [] {
    for (const Isa& i : isas()) {
      if (i.available) return &i;
    }
    return &isas().back();
  }();
  return isa;
}

const KernelTable& kernels() { return *chosen().load()->table; }

void check_bags(const Bags& bags) {
  const int64_t num_bags = bags.num_features * bags.bags_per_feature;
  TE_CHECK(num_bags >= 0 && bags.num_ids >= 0, "sizes are not negative");
  TE_CHECK(bags.offsets != nullptr || bags.num_ids == num_bags, "without offsets, a bag per id");
  TE_CHECK(
      bags.offsets == nullptr || (bags.offsets[0] == 0 && bags.offsets[num_bags] == bags.num_ids),
      "offsets reach from 0 to the number of ids");
}

void check_groups(const Bags& bags, const Groups& groups) {
  TE_CHECK(groups.start[0] == 0 && groups.start[groups.num_unique] == bags.num_ids,
           "every occurrence is in a group");
}

// Few rows are looked up or updated sooner than a worker wakes.
int useful_threads(const Records& records, int64_t num_rows, int num_threads) {
  return num_rows * records.dim * weight_bytes(records.type) < kFewBytes ? 1 : num_threads;
}

// Bags that a thread looks up at a time.
int64_t bags_per_block(const Bags& bags) {
  const int64_t num_bags = bags.num_features * bags.bags_per_feature;
  const int64_t ids_per_bag = bags.num_ids / std::max<int64_t>(num_bags, 1) + 1;
  return std::max<int64_t>(1, 1024 / ids_per_bag);
}

// Gradient rows as the update reads them: where each occurrence's row starts, in floats from
// `base`. Bags that are not sums get rows of their own: a mean's divided by its length, one per
// bag; a maximum's with the columns that its occurrence won, one per occurrence.
struct GradientRows {
  std::unique_ptr<int64_t[]> bag_of;  // (N)
  std::unique_ptr<float[]> own;
  const float* base = nullptr;
};

GradientRows gradient_rows(const Bags& bags, const float* grad, int64_t dim, int num_threads) {
  check_bags(bags);
  const KernelTable& k = kernels();
  GradientRows out;
  out.base = grad;
  out.bag_of.reset(new int64_t[static_cast<size_t>(std::max<int64_t>(bags.num_ids, 1))]);
  const auto any = [&](Pooling p) {
    return std::find(bags.pooling, bags.pooling + bags.num_features, p) !=
           bags.pooling + bags.num_features;
  };
  const bool any_max = any(Pooling::kMax);
  TE_CHECK(!any_max || bags.winners != nullptr, "a maximum's gradient needs its winners");
  const bool any_own = any_max || any(Pooling::kMean);
  const int64_t num_bags = bags.num_features * bags.bags_per_feature;
  if (any_own) {
    const int64_t rows = num_bags + (any_max ? bags.num_ids : 0);
    out.own.reset(new float[static_cast<size_t>(std::max<int64_t>(rows * dim, 1))]);
    out.base = out.own.get();
  }
  const int64_t block = 512;
  // Addresses alone are written sooner than a worker wakes.
  const int helpers = any_own || bags.num_ids > kFewIds ? num_threads : 1;
  parallel_for((num_bags + block - 1) / block, helpers, [&](int64_t n) {
    int64_t feature = n * block / bags.bags_per_feature;
    int64_t within = n * block % bags.bags_per_feature;
    for (int64_t bag = n * block; bag < std::min(num_bags, (n + 1) * block); ++bag, ++within) {
      if (within == bags.bags_per_feature) {
        ++feature;
        within = 0;
      }
      const int64_t first = bags.offsets ? bags.offsets[bag] : bag;
      const int64_t last = bags.offsets ? bags.offsets[bag + 1] : bag + 1;
      int64_t at = within * bags.row_stride + bags.columns[feature];
      if (bags.pooling[feature] == Pooling::kMax) {
        for (int64_t i = first; i < last; ++i) {
          out.bag_of[i] = (num_bags + i) * dim;
          k.select(grad + at, bags.winners + bag * dim, static_cast<int32_t>(i), dim,
                   out.own.get() + out.bag_of[i]);
        }
        continue;
      }
      if (any_own) {
        const bool mean = bags.pooling[feature] == Pooling::kMean;
        const float length = mean ? static_cast<float>(last - first) : 1.0f;
        if (last > first) k.divide(grad + at, length, dim, out.own.get() + bag * dim);
        at = bag * dim;
      }
      for (int64_t i = first; i < last; ++i) out.bag_of[i] = at;
    }
  });
  return out;
}

// Calls block(begin, end) over ranges of unique rows of about equal work, on all threads, then
// hot(u, sum) for each row that has so many occurrences that it would keep one thread busy: its
// chunks are summed by all threads and added in order, which gives the bits that one thread gives.
template <typename Block, typename Hot>
void for_groups(const Bags& bags, const Groups& groups, const GradientRows& rows, int64_t dim,
                int num_threads, const Block& block, const Hot& hot) {
  check_groups(bags, groups);
  const StandardFloats floats;
  const KernelTable& k = kernels();
  const int64_t limit = num_threads > 1
                            ? std::max<int64_t>(16 * kChunk, bags.num_ids / (8 * num_threads))
                            : INT64_MAX;
  const int64_t work_per_block = 1024;
  struct Range {
    int64_t begin, end;
  };
  std::vector<Range> ranges, chunks;  // of unique rows; of occurrences of the hot ones
  std::vector<int64_t> hot_rows;
  int64_t begin = 0, work = 0;
  const auto end_range = [&](int64_t end) {
    if (begin < end) ranges.push_back({begin, end});
    begin = end;
    work = 0;
  };
  for (int64_t u = 0; u < groups.num_unique; ++u) {
    const int64_t first = groups.start[u], last = groups.start[u + 1];
    if (last - first > limit) {
      end_range(u);
      begin = u + 1;
      hot_rows.push_back(u);
      for (int64_t i = first; i < last; i += kChunk)
        chunks.push_back({i, std::min(i + kChunk, last)});
      continue;
    }
    work += last - first + 1;
    if (work >= work_per_block) end_range(u + 1);
  }
  end_range(groups.num_unique);
  const int64_t num_chunks = static_cast<int64_t>(chunks.size());
  std::vector<float> sums(static_cast<size_t>(num_chunks * dim));
  parallel_for(num_chunks + static_cast<int64_t>(ranges.size()), num_threads, [&](int64_t n) {
    if (n < num_chunks) {
      k.chunk_sum(bags, groups.group, rows.bag_of.get(), rows.base, dim, chunks[n].begin,
                  chunks[n].end, sums.data() + n * dim);
    } else {
      block(ranges[n - num_chunks].begin, ranges[n - num_chunks].end);
    }
  });
  float* sum = sums.data();
  for (int64_t u : hot_rows) {
    const int64_t occurrences = groups.start[u + 1] - groups.start[u];
    const int64_t end = (occurrences + kChunk - 1) / kChunk * dim;
    for (int64_t i = dim; i < end; i += dim) k.add(sum, sum + i, dim);
    hot(u, sum);
    sum += end;
  }
}

void prefetch_record(const Records& records, int64_t slot) {
  const int64_t row_bytes = records.dim * weight_bytes(records.type);
  for (int64_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(records.row(slot) + i, 0, 2);
  for (int64_t i = 0; i < records.state_floats; i += 16) {
    __builtin_prefetch(records.row_state(slot) + i, 0, 2);
  }
}

// Calls fn(u) for every unique row, in blocks on all threads.
template <typename Fn>
void for_rows(int64_t num_unique, int num_threads, const Fn& fn) {
  const int64_t block = 256;
  parallel_for((num_unique + block - 1) / block, num_threads,
               [&](int64_t n) { fn(n * block, std::min(num_unique, (n + 1) * block)); });
}

}  // namespace

void lookup(const Records& records, const Bags& bags, float* out, int num_threads) {
  check_bags(bags);
  const KernelTable& k = kernels();
  const int64_t num_bags = bags.num_features * bags.bags_per_feature;
  const int64_t block = bags_per_block(bags);
  const int threads = useful_threads(records, bags.num_ids, num_threads);
  parallel_for((num_bags + block - 1) / block, threads, [&](int64_t n) {
    k.lookup(records, bags, n * block, std::min(num_bags, (n + 1) * block), out);
  });
}

namespace {

// A lookup of rows whose addresses are only known block by block: place(begin, end, rows) writes
// those of the occurrences [begin, end).
template <typename Place>
void lookup_placed(const Records& records, const Bags& bags, float* out, int num_threads,
                   const Place& place) {
  check_bags(bags);
  const KernelTable& k = kernels();
  const int64_t num_bags = bags.num_features * bags.bags_per_feature;
  const int64_t block = bags_per_block(bags);
  const int threads = useful_threads(records, bags.num_ids, num_threads);
  parallel_for((num_bags + block - 1) / block, threads, [&](int64_t n) {
    const int64_t begin = n * block, end = std::min(num_bags, begin + block);
    const int64_t first = bags.offsets ? bags.offsets[begin] : begin;
    const int64_t last = bags.offsets ? bags.offsets[end] : end;
    PlainVector<const uint8_t*> rows(static_cast<size_t>(last - first) + 1);  // not empty
    place(first, last, rows.data());
    Bags placed = bags;
    placed.rows = rows.data();
    placed.first_row = first;
    k.lookup(records, placed, begin, end, out);
  });
}

}  // namespace

void lookup_in_place(const Places& places, const Bags& bags, float* out, int num_threads) {
  const Records& upper = *places.upper;
  const int64_t row_bytes = upper.dim * weight_bytes(upper.type);
  lookup_placed(
      upper, bags, out, num_threads, [&](int64_t begin, int64_t end, const uint8_t** rows) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t slot = places.slots[i];
          if (slot < 0) {
            *rows++ = places.scratch + (-1 - slot) * places.record_bytes;
          } else if (slot < places.first_lower_slot) {
            *rows++ = upper.weights + slot * row_bytes;
          } else {
            *rows++ = places.lower->weights + (slot - places.first_lower_slot) * row_bytes;
          }
        }
      });
}

void lookup_whole(const Records& records, const std::vector<WholeRun>& runs, const Bags& bags,
                  float* out, int num_threads) {
  const int64_t row_bytes = records.dim * weight_bytes(records.type);
  std::vector<int64_t> ends;  // of the runs, in occurrences
  ends.reserve(runs.size());
  for (const WholeRun& run : runs) ends.push_back((ends.empty() ? 0 : ends.back()) + run.num_ids);
  TE_CHECK((ends.empty() ? 0 : ends.back()) == bags.num_ids, "the runs are the occurrences");
  lookup_placed(
      records, bags, out, num_threads, [&](int64_t begin, int64_t end, const uint8_t** rows) {
        auto r =
            static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin());
        for (int64_t i = begin; i < end; ++r) {
          const WholeRun& run = runs[r];
          const uint8_t* base = records.weights + run.first_slot * row_bytes;
          const int64_t* ids = run.ids + (i - (ends[r] - run.num_ids));
          const int64_t n = std::min(end, ends[r]) - i;
          for (int64_t k = 0; k < n; ++k) rows[k] = base + ids[k] * row_bytes;
          rows += n;
          i += n;
        }
      });
}

void update(const Records& records, const Bags& bags, const Groups& groups, const float* grad,
            const Step& step, int num_threads) {
  const KernelTable& k = kernels();
  const int64_t dim = records.dim;
  const int threads = useful_threads(records, bags.num_ids, num_threads);
  const GradientRows rows = gradient_rows(bags, grad, dim, threads);
  Scratch all_scratch(3 * dim, threads);
  for_groups(
      bags, groups, rows, dim, threads,
      [&](int64_t begin, int64_t end) {
        const Scratch::Part scratch(&all_scratch);
        k.update(records, bags, groups, rows.bag_of.get(), rows.base, step, begin, end,
                 scratch.data());
      },
      [&](int64_t u, float* sum) {
        const Scratch::Part scratch(&all_scratch);
        k.apply(records, u, bags.slots[u], groups.start[u + 1] - groups.start[u], sum, step,
                scratch.data());
      });
}

void row_gradients(const Bags& bags, const Groups& groups, const float* grad, int64_t dim,
                   float* out, int num_threads) {
  const KernelTable& k = kernels();
  const GradientRows rows = gradient_rows(bags, grad, dim, num_threads);
  for_groups(
      bags, groups, rows, dim, num_threads,
      [&](int64_t begin, int64_t end) {
        std::vector<float> chunk(static_cast<size_t>(dim));
        for (int64_t u = begin; u < end; ++u) {
          k.row_sum(bags, groups, rows.bag_of.get(), rows.base, dim, u, out + u * dim,
                    chunk.data());
        }
      },
      [&](int64_t u, const float* sum) { std::copy_n(sum, dim, out + u * dim); });
}

double condition_rows(const Groups& groups, int64_t dim, const Conditioning& conditioning,
                      float* rows, int num_threads) {
  const StandardFloats floats;
  const KernelTable& k = kernels();
  std::vector<float> squares(static_cast<size_t>(groups.num_unique));
  for_rows(groups.num_unique, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      float* g = rows + u * dim;
      k.condition(conditioning, groups.start[u + 1] - groups.start[u], dim, g);
      squares[static_cast<size_t>(u)] = k.dot(g, g, dim);
    }
  });
  double sum = 0.0;
  for (float x : squares) sum += x;
  return sum;
}

void apply_rows(const Records& records, const Bags& bags, const Groups& groups, float* rows,
                const Step& step, int num_threads) {
  const KernelTable& k = kernels();
  constexpr int64_t kAhead = 12;
  Scratch all_scratch(records.dim, num_threads);
  for_rows(groups.num_unique, num_threads, [&](int64_t begin, int64_t end) {
    const Scratch::Part scratch(&all_scratch);
    for (int64_t u = begin; u < end; ++u) {
      if (u + kAhead < end) prefetch_record(records, bags.slots[u + kAhead]);
      k.apply(records, u, bags.slots[u], groups.start[u + 1] - groups.start[u],
              rows + u * records.dim, step, scratch.data());
    }
  });
}

void add_rows(const float* rows, const int64_t* where, int64_t n, int64_t dim, float* total,
              int num_threads) {
  const KernelTable& k = kernels();
  for_rows(n, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) k.add(total + where[i] * dim, rows + i * dim, dim);
  });
}

void sample_weight_gradient(const Records& records, const Bags& bags, const float* grad,
                            float* sample_grad, int num_threads) {
  const KernelTable& k = kernels();
  const GradientRows rows = gradient_rows(bags, grad, records.dim, num_threads);
  const int64_t block = 1024;
  parallel_for((bags.num_ids + block - 1) / block, num_threads, [&](int64_t n) {
    std::vector<float> row(static_cast<size_t>(records.dim));
    for (int64_t i = n * block; i < std::min(bags.num_ids, (n + 1) * block); ++i) {
      k.decode(records, bags.slots[bags.inverse[i]], row.data());
      sample_grad[i] = k.dot(rows.base + rows.bag_of[i], row.data(), records.dim);
    }
  });
}

void renormalise(const Records& records, const int32_t* slots, int64_t num_unique, float max_norm,
                 double p, int num_threads) {
  const KernelTable& k = kernels();
  Scratch all_scratch(records.dim, num_threads);
  for_rows(num_unique, num_threads, [&](int64_t begin, int64_t end) {
    const Scratch::Part scratch(&all_scratch);
    for (int64_t u = begin; u < end; ++u) {
      k.renormalise(records, slots[u], max_norm, p, scratch.data());
    }
  });
}

float largest_magnitude(const float* x, int64_t n, int num_threads) {
  const KernelTable& k = kernels();
  const int64_t block = int64_t{1} << 16;
  const int64_t num_blocks = (n + block - 1) / block;
  std::vector<uint32_t> most(static_cast<size_t>(num_blocks));
  // A few blocks are read sooner than a worker wakes.
  parallel_for(num_blocks, num_blocks > 4 ? num_threads : 1, [&](int64_t i) {
    most[static_cast<size_t>(i)] = k.largest(x + i * block, std::min(block, n - i * block));
  });
  uint32_t bits = 0;
  for (uint32_t m : most) bits = std::max(bits, m);
  return float_of(std::min(bits, bits_of(std::numeric_limits<float>::infinity())));
}

const std::vector<std::string>& optimizer_names() {
  static const std::vector<std::string> names = {
#define TE_NAME(name) #name,
      TE_OPTIMIZERS(TE_NAME)
#undef TE_NAME
  };
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& i : isas()) {
    if (i.available) names.emplace_back(i.name);
  }
  return names;
}

std::string current_isa() { return chosen().load()->name; }

void select_isa(const std::string& name) {
  for (const Isa& i : isas()) {
    if (i.available && name == i.name) {
      chosen().store(&i);
      return;
    }
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available on this machine");
}

}  // namespace te
