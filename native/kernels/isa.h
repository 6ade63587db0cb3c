// What one instruction set's copy of the kernels offers. All calls are single-threaded over a
// range.
#pragma once

#include "kernels/kernels.h"

namespace te {

struct KernelTable {
  // Bags [begin, end), numbered feature by feature.
  void (*lookup)(const Records&, const Bags&, int64_t begin, int64_t end, float* out);

  // Unique rows [begin, end). bag_of (N): address of each occurrence's gradient row, in floats.
  // `scratch` holds 2 * D floats.
  void (*update)(const Records&, const Bags&, const Groups&, const int64_t* bag_of,
                 const float* grad, const Hyper&, int64_t begin, int64_t end, float* scratch);

  // Sum of at most 256 occurrences [begin, end) of `group` into sum (D).
  void (*chunk_sum)(const Bags&, const int32_t* group, const int64_t* bag_of, const float* grad,
                    int64_t dim, int64_t begin, int64_t end, float* sum);

  // One row's optimizer step with its gradient g (D).
  void (*apply)(const Records&, int32_t slot, const float* g, const Hyper&);

  // Adds chunk (D) to total (D).
  void (*add)(float* total, const float* chunk, int64_t dim);

  // out[c] = in[c] / divisor.
  void (*divide)(const float* in, float divisor, int64_t dim, float* out);

  // dot(a, b) over dim columns in the fixed order.
  float (*dot)(const float* a, const float* b, int64_t dim);
};

extern const KernelTable kBaselineKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;

}  // namespace te
