#include "bindings/arrays.h"
#include "core/check.h"

NB_MODULE(_native, m) {
  m.doc() = "Native mechanisms of tiered_embed: residency, records and kernels.";
  m.attr("HAS_CHECKS") = te::kHasChecks;
  te::bind_segments(m);
  te::bind_residency(m);
  te::bind_replay(m);
  te::bind_records(m);
  te::bind_kernels(m);
  te::bind_row_formats(m);
  te::bind_write_buffer(m);
  te::bind_process(m);
}
