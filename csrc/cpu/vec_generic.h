// Four float32 lanes by compiler vectors: SSE2, NEON, or whatever 128 bits the target has. Included inside an ISA
// namespace; see kernels_baseline.cpp.

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct Vec {
  using Scalar = float;
  static constexpr int W = 4;
  Float4 v;

  INLINE Vec() {}
  INLINE Vec(Float4 x) : v(x) {}
  INLINE Vec(float x) : v{x, x, x, x} {}
  INLINE static Vec broadcast(const float* p) { return Vec(*p); }
  INLINE static Vec load(const float* p) {
    Vec r;
    memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  template <class T>
  INLINE static Vec load(const T* p) {
    return Float4{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  INLINE void store(float* p) const { memcpy(p, &v, sizeof v); }
  static constexpr bool kStreams = false;  // a vector is not a whole cache line
  INLINE void stream(float* p) const { store(p); }
  template <class T>
  INLINE void store(T* p) const {
    for (int i = 0; i < W; ++i) from_float(v[i], p + i);
  }
};

INLINE void finish_streams() {}

INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
#if defined(__ARM_NEON) && defined(__aarch64__)
INLINE Vec fma(Vec a, Vec b, Vec c) { return (Float4)vfmaq_f32((float32x4_t)c.v, (float32x4_t)a.v, (float32x4_t)b.v); }
INLINE Vec fnma(Vec a, Vec b, Vec c) { return (Float4)vfmsq_f32((float32x4_t)c.v, (float32x4_t)a.v, (float32x4_t)b.v); }
#else
INLINE Vec fma(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }
INLINE Vec fnma(Vec a, Vec b, Vec c) { return c.v - a.v * b.v; }
#endif
INLINE Vec select(Int4 mask, Vec a, Vec b) { return (Float4)((mask & (Int4)a.v) | (~mask & (Int4)b.v)); }
INLINE Vec max(Vec a, Vec b) { return select(a.v > b.v, a, b); }
INLINE Vec min(Vec a, Vec b) { return select(a.v < b.v, a, b); }
INLINE Vec abs(Vec a) { return (Float4)((Int4)a.v & 0x7fffffff); }
INLINE Vec select_negative(Vec x, Vec if_negative, Vec otherwise) {
  return select((Int4)x.v < 0, if_negative, otherwise);
}
INLINE Vec zero_where_less(Vec a, Vec b, Vec x) { return (Float4)(~(a.v < b.v) & (Int4)x.v); }
INLINE bool all_less(Vec a, Vec b) {
  const Int4 less = a.v < b.v;
  return (less[0] & less[1] & less[2] & less[3]) != 0;
}
INLINE Vec max_bits(Vec a, Vec b) { return select((Int4)a.v > (Int4)b.v, a, b); }
INLINE Vec round(Vec a) {  // to nearest even, |a| < 2^22
  const Vec magic(12582912.f);
  return (a + magic) - magic;
}

// 2^n for integral n in [-126, 127].
INLINE Vec power_of_two(Vec n) {
  const Int4 k = (Int4)(n + Vec(12582912.f + 127.f)).v;
  return (Float4)(k << 23);
}

// p * 2^k, where the low bits of magic_k = 1.5 * 2^23 + k hold the integer k and nothing over- or underflows.
INLINE Vec scale_by_magic(Vec p, Vec magic_k) { return (Float4)((Int4)p.v + ((Int4)magic_k.v << 23)); }

INLINE void transpose(Vec* r) {  // 4 x 4
  const Vec s[4] = {r[0], r[1], r[2], r[3]};
  for (int i = 0; i < 4; ++i) r[i] = Float4{s[0].v[i], s[1].v[i], s[2].v[i], s[3].v[i]};
}

// acc[i] += the sum over the four lanes of the i-th argument.
constexpr int kReduceWidth = 4;
INLINE void accumulate4(float* acc, Vec a, Vec b, Vec c, Vec d) {
  Vec r[4] = {a, b, c, d};
  transpose(r);
  (Vec::load(acc) + ((r[0] + r[1]) + (r[2] + r[3]))).store(acc);
}
// sums[i] = or += acc[i].
INLINE void finish4(const float* acc, float* sums, bool add) {
  (add ? Vec::load(sums) + Vec::load(acc) : Vec::load(acc)).store(sums);
}
