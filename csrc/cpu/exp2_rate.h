// The recurrence's own exponential with nothing around it: the rate that bounds the forward scan. Returns lanes done.
// Included inside an ISA namespace.

NOINLINE static double exp2_rate(int64_t vectors) {
  const Exp2Table table;
  Vec sum[8], x[8];
  for (int i = 0; i < 8; ++i) sum[i] = Vec(Scalar(0)), x[i] = Vec(Scalar(-0.1) * Scalar(i));
  for (int64_t v = 0; v < vectors; v += 8) UNROLL
  for (int i = 0; i < 8; ++i) {
    sum[i] = sum[i] + exp2_near(x[i], Vec(Scalar(1.25)), table);
    x[i] = x[i] + Vec(Scalar(-1e-9));
  }
  Vec total = sum[0];
  for (int i = 1; i < 8; ++i) total = total + sum[i];
  return sum_lanes(total) > Scalar(0) ? double((vectors + 7) / 8 * 8 * W) : 0.;
}
