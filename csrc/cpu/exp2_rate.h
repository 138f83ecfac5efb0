// The recurrence's own exponential with as little around it as a loop needs: the rate that bounds the forward scan.
// Returns lanes done. Included inside an ISA namespace.

NOINLINE static double exp2_rate(int64_t vectors) {
  const Exp2Table table;
  Vec sum[4], x[4];
  for (int i = 0; i < 4; ++i) sum[i] = Vec(Scalar(0)), x[i] = Vec(Scalar(-0.1) * Scalar(i + 1));
  for (int64_t v = 0; v < vectors; v += 8) UNROLL
  for (int i = 0; i < 4; ++i) {
    sum[i] = fma(exp2_near(x[i], Vec(Scalar(1.25)), table), exp2_near(x[i], Vec(Scalar(1.5)), table), sum[i]);
    x[i] = x[i] + Vec(Scalar(-1e-6));
  }
  return sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])) > Scalar(0) ? double((vectors + 7) / 8 * 8 * W) : 0.;
}
