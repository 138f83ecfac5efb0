// 2^(x y) without tables: round to the nearest integer by the magic number 1.5 * 2^23, a polynomial of degree 6 in the
// rest, the integer added to the exponent bits. Relative error 2e-9 + rounding; exact at 0.

struct Exp2Table {
  INLINE Exp2Table() {}
};

INLINE Vec exp2_rest(Vec r) {  // |r| <= 1/2
  Vec p(0.00015353362f);
  p = fma(p, r, Vec(0.0013398874f));
  p = fma(p, r, Vec(0.009618437f));
  p = fma(p, r, Vec(0.055503324f));
  p = fma(p, r, Vec(0.24022648f));
  p = fma(p, r, Vec(0.6931472f));
  return fma(p, r, Vec(1.f));
}

// 2^(x y) for |x y| < 126. The product is never rounded where the machine has a fused multiply-add.
INLINE Vec exp2_near(Vec x, Vec y, const Exp2Table&) {
  const Vec magic(12582912.f);
  const Vec k = fma(x, y, magic);
  return scale_by_magic(exp2_rest(fma(x, y, magic - k)), k);
}

// The same bits where the result is normal, and right everywhere else: underflow, overflow, infinities, NaN.
INLINE Vec exp2_any(Vec x, Vec y, const Exp2Table&) {
  const Vec magic(12582912.f);
  const Vec k = min(Vec(252.f), max(Vec(-252.f), fma(x, y, magic) - magic));
  const Vec rest = min(Vec(0.5f), max(Vec(-0.5f), fma(x, y, Vec(0.f) - k)));
  return scale_in_two_steps(exp2_rest(rest), k);
}
