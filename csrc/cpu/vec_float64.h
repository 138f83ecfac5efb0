// One float64 at a time, through libm: the accumulation type of float64 tensors. Included inside an ISA namespace; see
// kernels_float64.cpp.

struct Vec {
  using Scalar = double;
  static constexpr int W = 1;
  double v;

  INLINE Vec() {}
  INLINE Vec(double x) : v(x) {}
  INLINE static Vec broadcast(const double* p) { return *p; }
  INLINE static Vec load(const double* p) { return *p; }
  INLINE void store(double* p) const { *p = v; }
  static constexpr bool kStreams = false;  // a vector is not a whole cache line
  INLINE void stream(double* p) const { store(p); }
};

INLINE void finish_streams() {}

INLINE Vec operator+(Vec a, Vec b) { return a.v + b.v; }
INLINE Vec operator-(Vec a, Vec b) { return a.v - b.v; }
INLINE Vec operator*(Vec a, Vec b) { return a.v * b.v; }
INLINE Vec operator/(Vec a, Vec b) { return a.v / b.v; }
INLINE Vec fma(Vec a, Vec b, Vec c) { return a.v * b.v + c.v; }
INLINE Vec fnma(Vec a, Vec b, Vec c) { return c.v - a.v * b.v; }
INLINE Vec max(Vec a, Vec b) { return a.v > b.v ? a.v : b.v; }
INLINE Vec abs(Vec a) { return ::fabs(a.v); }
INLINE Vec select_negative(Vec x, Vec if_negative, Vec otherwise) { return signbit(x.v) ? if_negative.v : otherwise.v; }
INLINE bool all_less(Vec a, Vec b) { return a.v < b.v; }
INLINE Vec max_bits(Vec a, Vec b) { return a.v >= b.v ? a.v : b.v != b.v ? b.v : a.v != a.v ? a.v : b.v; }
INLINE void transpose(Vec*) {}

struct Exp2Table {
  INLINE Exp2Table() {}
};
INLINE Vec exp2_near(Vec x, Vec y, const Exp2Table&) { return ::exp2(x.v * y.v); }
INLINE Vec exp2_any(Vec x, Vec y, const Exp2Table&) { return ::exp2(x.v * y.v); }

INLINE Vec exp_negative(Vec x) { return ::exp(x.v); }
INLINE Vec log1p_unit(Vec e) { return ::log1p(e.v); }

// acc[i] += the i-th argument.
constexpr int kReduceWidth = 4;
INLINE void accumulate4(double* acc, Vec a, Vec b, Vec c, Vec d) {
  acc[0] += a.v;
  acc[1] += b.v;
  acc[2] += c.v;
  acc[3] += d.v;
}
// sums[i] = or += acc[i].
INLINE void finish4(const double* acc, double* sums, bool add) {
  for (int i = 0; i < 4; ++i) sums[i] = add ? sums[i] + acc[i] : acc[i];
}
