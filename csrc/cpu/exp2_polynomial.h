// 2^x without tables: round to the nearest integer by the magic number 1.5 * 2^23, a polynomial of degree 6 in the
// rest, the integer added to the exponent bits. Relative error 2e-9 + rounding; exact at 0.

constexpr float kExp2Magic = 12582912.f;  // added to a number, leaves its integer in the low bits

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

// 2^(position + rest) for magic_position = kExp2Magic + position.
INLINE Vec exp2_at(Vec magic_position, Vec rest, const Exp2Table&) {
  return scale_by_magic(exp2_rest(rest), magic_position);
}

// 2^(x y) for |x y| < 126. The product is never rounded where the machine has a fused multiply-add.
INLINE Vec exp2_near(Vec x, Vec y, const Exp2Table& table) {
  const Vec magic(kExp2Magic);
  const Vec k = fma(x, y, magic);
  return exp2_at(k, fma(x, y, magic - k), table);
}

INLINE Vec scale_in_two_steps(Vec p, Vec n) {  // p * 2^n for integral |n| <= 252: under- and overflow as IEEE 754 says
  const Vec half = round(n * Vec(0.5f));
  return p * power_of_two(half) * power_of_two(n - half);
}

// 2^(x y) as exp2_near has it where the result is normal, and right everywhere else: underflow, overflow, infinities,
// NaN.
INLINE Vec exp2_any(Vec x, Vec y, const Exp2Table&) {
  const Vec magic(kExp2Magic);
  const Vec k = min(Vec(252.f), max(Vec(-252.f), fma(x, y, magic) - magic));
  const Vec rest = min(Vec(0.5f), max(Vec(-0.5f), fma(x, y, Vec(0.f) - k)));
  return scale_in_two_steps(exp2_rest(rest), k);
}
