// One element to and from the accumulation type, whatever the storage type. Included inside an ISA namespace.

INLINE float bits_to_float(uint32_t bits) {
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
INLINE uint32_t float_to_bits(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return bits;
}

INLINE float to_float(float x) { return x; }
INLINE double to_float(double x) { return x; }
INLINE float to_float(BFloat16 x) { return bits_to_float((uint32_t)x.bits << 16); }
INLINE float to_float(Float16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return bits_to_float(sign |
                       float_to_bits(bits_to_float(magnitude << 13) * bits_to_float(0x77800000u)));  // times 2^112
}

INLINE void from_float(float x, float* p) { *p = x; }
INLINE void from_float(double x, double* p) { *p = x; }
INLINE void from_float(float x, BFloat16* p) {  // to nearest even
  const uint32_t bits = float_to_bits(x);
  p->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
INLINE void from_float(float x, Float16* p) {  // to nearest even
  const uint32_t bits = float_to_bits(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u)
    half = 0x7e00u;
  else if (magnitude >= 0x477ff000u)
    half = 0x7c00u;
  else if (magnitude < 0x38800000u)  // below 2^-14: let an addition of 1/2 round at 2^-24
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  else
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  p->bits = (uint16_t)(sign | half);
}
