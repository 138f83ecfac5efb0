// 2^t without tables: round to the nearest integer by the magic number 1.5 * 2^23, a polynomial of degree 5 in the
// rest, the integer added to the exponent bits. Relative error 9.1e-8 + rounding; exact at t = 0.

struct Exp2Table {
  INLINE Exp2Table() {}
};

INLINE Vec exp2_rest(Vec r) {  // |r| <= 1/2
  Vec p(0.0013264727f);
  p = fma(p, r, Vec(0.009671513f));
  p = fma(p, r, Vec(0.055507336f));
  p = fma(p, r, Vec(0.24022242f));
  p = fma(p, r, Vec(0.693147f));
  return fma(p, r, Vec(1.f));
}

// 2^t for |t| < 126.
INLINE Vec exp2_near(Vec t, const Exp2Table&) {
  const Vec magic(12582912.f);
  const Vec k = t + magic;
  return scale_by_magic(exp2_rest(t - (k - magic)), k);
}

// The same bits where 2^t is normal, and right everywhere else: underflow, overflow, infinities, NaN.
INLINE Vec exp2_any(Vec t, const Exp2Table&) {
  const Vec bounded = min(Vec(252.f), max(Vec(-252.f), t));
  const Vec k = round(bounded);
  return scale_in_two_steps(exp2_rest(bounded - k), k);
}
