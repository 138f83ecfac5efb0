// Sigmoid and softplus from e^-|x|, which neither overflows nor loses the digits of a small result. Included inside an
// ISA namespace.

INLINE Vec exp_minus_abs(Vec x) { return exp_negative(Vec(Vec::Scalar(0)) - abs(x)); }
INLINE Vec sigmoid_from(Vec x, Vec e) {
  const Vec one(Vec::Scalar(1)), inverse = one / (one + e);
  return select_negative(x, e * inverse, inverse);
}
INLINE Vec softplus_from(Vec x, Vec e) { return max(Vec(Vec::Scalar(0)), x) + log1p_unit(e); }
INLINE Vec sigmoid(Vec x) { return sigmoid_from(x, exp_minus_abs(x)); }
