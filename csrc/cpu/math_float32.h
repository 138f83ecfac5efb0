// Functions evaluated once per element rather than once per state: accuracy comes first. max and min return their
// second argument when either is NaN, so that a NaN passes through max(constant, x). Included inside an ISA namespace,
// after one of exp2_*.h, the exponential of the recurrence.

INLINE Vec exp_negative(Vec x) {  // e^x for x <= 0; relative error 1e-7; zero where the result would be subnormal
  const Vec magic(kExp2Magic), bounded = max(Vec(-87.3f), x), k = fma(bounded, Vec(1.44269504f), magic), n = k - magic;
  const Vec r =
      fnma(n, Vec(-2.12194440e-4f), fnma(n, Vec(0.693359375f), bounded));  // ln 2 in two parts, the first exact
  return zero_where_less(x, Vec(-87.3f), exp2_at(k, r * Vec(1.44269504f), Exp2Table()));
}

INLINE Vec log1p_unit(Vec e) {  // log(1 + e) for 0 <= e <= 1; relative error 5e-9 + rounding
  Vec p(-0.0033184732f);
  p = fma(p, e, Vec(0.020204589f));
  p = fma(p, e, Vec(-0.05766445f));
  p = fma(p, e, Vec(0.10680556f));
  p = fma(p, e, Vec(-0.15355396f));
  p = fma(p, e, Vec(0.19695401f));
  p = fma(p, e, Vec(-0.24958588f));
  p = fma(p, e, Vec(0.33330512f));
  p = fma(p, e, Vec(-0.4999993f));
  return fma(e * e, p, e);
}
