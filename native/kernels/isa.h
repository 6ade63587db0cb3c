// What one instruction set's copy of the kernels offers. All calls are single-threaded over a
// range.
#pragma once

#include "kernels/kernels.h"

namespace te {

struct KernelTable {
  // Bags [begin, end), numbered feature by feature.
  void (*lookup)(const Records&, const Bags&, int64_t begin, int64_t end, float* out);

  // Unique rows [begin, end). bag_of (N): address of each occurrence's gradient row, in floats.
  // `scratch` holds 3 * D floats.
  void (*update)(const Records&, const Bags&, const Groups&, const int64_t* bag_of,
                 const float* grad, const Step&, int64_t begin, int64_t end, float* scratch);

  // Sum of the occurrences of unique row u into sum (D); `chunk` is scratch (D).
  void (*row_sum)(const Bags&, const Groups&, const int64_t* bag_of, const float* grad, int64_t dim,
                  int64_t u, float* sum, float* chunk);

  // Sum of at most 256 occurrences [begin, end) of `group` into sum (D).
  void (*chunk_sum)(const Bags&, const int32_t* group, const int64_t* bag_of, const float* grad,
                    int64_t dim, int64_t begin, int64_t end, float* sum);

  // Unique row u's step with its gradient g (D), which is overwritten; `scratch` holds D floats.
  void (*apply)(const Records&, int64_t u, int32_t slot, int64_t occurrences, float* g, const Step&,
                float* scratch);

  // The gradient's part of the conditioning, in place.
  void (*condition)(const Conditioning&, int64_t occurrences, int64_t dim, float* g);

  // Adds chunk (D) to total (D).
  void (*add)(float* total, const float* chunk, int64_t dim);

  // out[c] = in[c] / divisor.
  void (*divide)(const float* in, float divisor, int64_t dim, float* out);

  // out[c] = winners[c] == occurrence ? in[c] : 0.
  void (*select)(const float* in, const int32_t* winners, int32_t occurrence, int64_t dim,
                 float* out);

  // dot(a, b) over dim columns in the fixed order.
  float (*dot)(const float* a, const float* b, int64_t dim);

  // A stored row's float32 values.
  void (*decode)(const Records&, int64_t slot, float* out);

  void (*renormalise)(const Records&, int64_t slot, float max_norm, double p, float* scratch);

  // Bits of the largest |x|; NaN counts as the largest of all.
  uint32_t (*largest)(const float* x, int64_t n);
};

extern const KernelTable kBaselineKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;

}  // namespace te
