// How a row's weights are stored, and the plain conversions. The definitions in
// tiered_embed/spec/row_formats.py are their oracles; the vector forms in kernels/lanes.inc give
// the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace te {

enum class WeightType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kInt8 = 3 };

// Inlined for certain: kernels compiled for one instruction set use it.
inline __attribute__((always_inline)) int64_t weight_bytes(WeightType type) {
  return type == WeightType::kFloat32 ? 4 : type == WeightType::kInt8 ? 1 : 2;
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Round to nearest, ties to even. NaN becomes the quiet NaN without sign.
inline uint16_t to_half(float x) {
  const uint32_t magnitude = bits_of(x) & 0x7FFFFFFFu;
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  if (magnitude > 0x7F800000u) return 0x7E00;
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {
    // Subnormal: the addition aligns the significand and rounds it.
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3F000000u));
  }
  const uint32_t t = magnitude - (112u << 23);
  return static_cast<uint16_t>(sign | ((t + 0xFFFu + ((t >> 13) & 1u)) >> 13));
}

inline float from_half(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t body = (h & 0x7FFFu) << 13;
  uint32_t magnitude;
  if (body < (1u << 23)) {
    magnitude = bits_of(float_of(body + (113u << 23)) - float_of(113u << 23));
  } else if (body < (31u << 23)) {
    magnitude = body + (112u << 23);
  } else {
    magnitude = body + (224u << 23);
  }
  return float_of(sign | magnitude);
}

inline uint16_t to_bfloat(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

inline float from_bfloat(uint16_t b) { return float_of(uint32_t{b} << 16); }

// Stores `in` (dim) as a row of `type`; int8 rows put (scale, bias) into `scale_bias`. An int8 row
// with a NaN, or a range that float32 cannot hold, is all NaN.
inline void encode_row(WeightType type, const float* in, int64_t dim, uint8_t* out,
                       float* scale_bias) {
  if (type == WeightType::kFloat32) {
    std::memcpy(out, in, static_cast<size_t>(dim) * 4);
    return;
  }
  if (type == WeightType::kInt8) {
    float low = in[0], high = in[0];
    bool has_nan = in[0] != in[0];
    for (int64_t c = 1; c < dim; ++c) {
      has_nan |= in[c] != in[c];
      low = in[c] < low ? in[c] : low;
      high = in[c] > high ? in[c] : high;
    }
    float scale = (high - low) / 255.0f;
    if (has_nan || !std::isfinite(scale)) scale = low = std::numeric_limits<float>::quiet_NaN();
    scale_bias[0] = scale;
    scale_bias[1] = low;
    for (int64_t c = 0; c < dim; ++c) {
      const float level = scale > 0.0f ? std::nearbyintf((in[c] - low) / scale) : 0.0f;
      out[c] = static_cast<uint8_t>(level < 255.0f ? level : 255.0f);
    }
    return;
  }
  for (int64_t c = 0; c < dim; ++c) {
    const uint16_t bits = type == WeightType::kFloat16 ? to_half(in[c]) : to_bfloat(in[c]);
    std::memcpy(out + 2 * c, &bits, 2);
  }
}

// The float32 values of a stored row.
inline void decode_row(WeightType type, const uint8_t* in, const float* scale_bias, int64_t dim,
                       float* out) {
  if (type == WeightType::kFloat32) {
    std::memcpy(out, in, static_cast<size_t>(dim) * 4);
    return;
  }
  for (int64_t c = 0; c < dim; ++c) {
    if (type == WeightType::kInt8) {
      out[c] = static_cast<float>(in[c]) * scale_bias[0] + scale_bias[1];
    } else {
      uint16_t bits;
      std::memcpy(&bits, in + 2 * c, 2);
      out[c] = type == WeightType::kFloat16 ? from_half(bits) : from_bfloat(bits);
    }
  }
}

}  // namespace te
