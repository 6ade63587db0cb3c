#include "kernels/kernels.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>

#include "core/thread_pool.h"
#include "kernels/isa.h"

namespace te {
namespace {

constexpr int64_t kChunk = 256;

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

// Gradient rows as the update reads them: where each occurrence's row starts, in floats from
// `base`. Bags of mean features are divided by their length once, into rows of their own.
struct GradientRows {
  std::unique_ptr<int64_t[]> bag_of;  // (N)
  std::unique_ptr<float[]> divided;   // rows of mean features
  const float* base = nullptr;
};

GradientRows gradient_rows(const Records& records, const Bags& bags, const float* grad,
                           int num_threads) {
  const KernelTable& k = kernels();
  GradientRows out;
  out.base = grad;
  out.bag_of.reset(new int64_t[static_cast<size_t>(std::max<int64_t>(bags.num_ids, 1))]);
  const bool any_mean =
      std::any_of(bags.mean, bags.mean + bags.num_features, [](uint8_t m) { return m != 0; });
  const int64_t num_bags = bags.num_features * bags.bags_per_feature;
  const int64_t dim = records.dim;
  if (any_mean) {
    out.divided.reset(new float[static_cast<size_t>(std::max<int64_t>(num_bags * dim, 1))]);
    out.base = out.divided.get();
  }
  const int64_t block = 512;
  parallel_for((num_bags + block - 1) / block, num_threads, [&](int64_t n) {
    for (int64_t bag = n * block; bag < std::min(num_bags, (n + 1) * block); ++bag) {
      const int64_t feature = bag / bags.bags_per_feature;
      const int64_t first = bags.offsets ? bags.offsets[bag] : bag;
      const int64_t last = bags.offsets ? bags.offsets[bag + 1] : bag + 1;
      int64_t at = (bag % bags.bags_per_feature) * bags.row_stride + bags.columns[feature];
      if (any_mean) {
        const float length = bags.mean[feature] ? static_cast<float>(last - first) : 1.0f;
        if (last > first) k.divide(grad + at, length, dim, out.divided.get() + bag * dim);
        at = bag * dim;
      }
      for (int64_t i = first; i < last; ++i) out.bag_of[i] = at;
    }
  });
  return out;
}

// A row with very many occurrences would keep one thread busy: its chunks are summed by all
// threads and added in order, which gives the bits that one thread gives.
void update_hot_row(const Records& records, const Bags& bags, const Groups& groups,
                    const GradientRows& rows, const Hyper& hyper, int64_t u, int num_threads) {
  const KernelTable& k = kernels();
  const int64_t first = groups.start[u], last = groups.start[u + 1];
  const int64_t num_chunks = (last - first + kChunk - 1) / kChunk;
  std::vector<float> sums(static_cast<size_t>(num_chunks * records.dim));
  parallel_for(num_chunks, num_threads, [&](int64_t c) {
    const int64_t begin = first + c * kChunk;
    k.chunk_sum(bags, groups.group, rows.bag_of.get(), rows.base, records.dim, begin,
                std::min(begin + kChunk, last), sums.data() + c * records.dim);
  });
  for (int64_t c = 1; c < num_chunks; ++c) {
    k.add(sums.data(), sums.data() + c * records.dim, records.dim);
  }
  k.apply(records, bags.slots[u], sums.data(), hyper);
}

}  // namespace

void lookup(const Records& records, const Bags& bags, float* out, int num_threads) {
  const KernelTable& k = kernels();
  const int64_t num_bags = bags.num_features * bags.bags_per_feature;
  const int64_t ids_per_bag = bags.num_ids / std::max<int64_t>(num_bags, 1) + 1;
  const int64_t block = std::max<int64_t>(1, 2048 / ids_per_bag);
  parallel_for((num_bags + block - 1) / block, num_threads, [&](int64_t n) {
    k.lookup(records, bags, n * block, std::min(num_bags, (n + 1) * block), out);
  });
}

void update(const Records& records, const Bags& bags, const Groups& groups, const float* grad,
            const Hyper& hyper, int num_threads) {
  const KernelTable& k = kernels();
  const GradientRows rows = gradient_rows(records, bags, grad, num_threads);

  // Blocks of about equal work, cut where a hot row stands.
  const int64_t hot = num_threads > 1
                          ? std::max<int64_t>(16 * kChunk, bags.num_ids / (8 * num_threads))
                          : INT64_MAX;
  const int64_t work_per_block = 2048;
  std::vector<int64_t> cuts = {0};
  std::vector<int64_t> hot_rows;
  int64_t work = 0;
  for (int64_t u = 0; u < groups.num_unique; ++u) {
    const int64_t occurrences = groups.start[u + 1] - groups.start[u];
    if (occurrences > hot) {
      hot_rows.push_back(u);
      cuts.push_back(u);
      cuts.push_back(u + 1);
      work = 0;
      continue;
    }
    work += occurrences + 1;
    if (work >= work_per_block) {
      cuts.push_back(u + 1);
      work = 0;
    }
  }
  cuts.push_back(groups.num_unique);
  const auto is_hot = [&](int64_t u) {
    return std::binary_search(hot_rows.begin(), hot_rows.end(), u);
  };
  parallel_for(static_cast<int64_t>(cuts.size()) - 1, num_threads, [&](int64_t n) {
    if (cuts[n] == cuts[n + 1] || (cuts[n + 1] == cuts[n] + 1 && is_hot(cuts[n]))) return;
    std::vector<float> scratch(static_cast<size_t>(2 * records.dim));
    k.update(records, bags, groups, rows.bag_of.get(), rows.base, hyper, cuts[n], cuts[n + 1],
             scratch.data());
  });
  for (int64_t u : hot_rows) {
    update_hot_row(records, bags, groups, rows, hyper, u, num_threads);
  }
}

void sample_weight_gradient(const Records& records, const Bags& bags, const float* grad,
                            float* sample_grad, int num_threads) {
  const KernelTable& k = kernels();
  const GradientRows rows = gradient_rows(records, bags, grad, num_threads);
  const int64_t block = 1024;
  parallel_for((bags.num_ids + block - 1) / block, num_threads, [&](int64_t n) {
    for (int64_t i = n * block; i < std::min(bags.num_ids, (n + 1) * block); ++i) {
      const float* row = records.weights + bags.slots[bags.inverse[i]] * records.dim;
      sample_grad[i] = k.dot(rows.base + rows.bag_of[i], row, records.dim);
    }
  });
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
