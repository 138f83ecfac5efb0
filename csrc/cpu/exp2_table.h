// 2^t on AVX-512: a table of 32 entries held in two registers, degree 2 in the rest. Relative error 5.3e-8 + rounding.

// Bits of 2^(i/32) less i << 18, so that adding (32 t) << 18 yields the bits of 2^t for any multiple t of 1/32.
alignas(64) static const uint32_t kExp2Bits[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};

struct Exp2Table {
  __m512i low, high;
  INLINE Exp2Table() : low(_mm512_load_si512(kExp2Bits)), high(_mm512_load_si512(kExp2Bits + 16)) {}
};

INLINE Vec nearest_32nd(Vec t) { return _mm512_roundscale_ps(t.v, 0x58); }

// 2^(nearest_32nd(position) + rest).
INLINE Vec exp2_split(Vec position, Vec rest, const Exp2Table& table) {
  const __m512i k = _mm512_castps_si512((position + Vec(393216.f)).v);  // 1.5 * 2^18: the low bits count 32nds
  const __m512i bits = _mm512_permutex2var_epi32(table.low, k, table.high);
  const Vec scale = _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_slli_epi32(k, 18)));
  return fma(scale * rest, fma(rest, Vec(0.24022654f), Vec(0.6931573f)), scale);
}

// 2^t for |t| < 126.
INLINE Vec exp2_near(Vec t, const Exp2Table& table) { return exp2_split(t, t - nearest_32nd(t), table); }

// The same bits where 2^t is normal, and right everywhere else: underflow, overflow, infinities, NaN.
INLINE Vec exp2_any(Vec t, const Exp2Table& table) {
  const Vec bounded = min(Vec(252.f), max(Vec(-252.f), t));
  const Vec position = nearest_32nd(bounded);
  const Vec whole = _mm512_roundscale_ps(position.v, 0x09);  // floor
  return _mm512_scalef_ps(exp2_split(position - whole, bounded - position, table).v, whole.v);
}
