// 2^(x y) on AVX-512: a table of 16 entries held in one register, degree 3 in the rest. Relative error 1.6e-9 +
// rounding; exact at 0.

// Bits of 2^(i/16) less i << 19, so that adding (16 t) << 19 yields the bits of 2^t for any multiple t of 1/16.
alignas(64) static const uint32_t kExp2Bits[16] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};

constexpr float kExp2Magic = 786432.f;  // 1.5 * 2^19: added to a number, leaves its 16ths in the low bits

struct Exp2Table {
  __m512i bits;
  INLINE Exp2Table() : bits(_mm512_load_si512(kExp2Bits)) {}
};

// 2^(position + rest) for magic_position = kExp2Magic + position.
INLINE Vec exp2_at(Vec magic_position, Vec rest, const Exp2Table& table) {
  const __m512i k = _mm512_castps_si512(magic_position.v);
  const __m512i bits = _mm512_permutexvar_epi32(k, table.bits);
  const Vec scale = _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_slli_epi32(k, 19)));
  const Vec p = fma(rest, fma(rest, Vec(0.055502135f), Vec(0.24023429f)), Vec(0.6931472f));
  return fma(scale * rest, p, scale);
}

// 2^(x y) for |x y| < 126. The product is rounded: its rest beyond the nearest 16th (0x44, in the rounding mode of the
// sum) is then an operation that leaves the multipliers free, for which the scan waits.
INLINE Vec exp2_near(Vec x, Vec y, const Exp2Table& table) {
  const Vec product = x * y;
  return exp2_at(product + Vec(kExp2Magic), _mm512_reduce_ps(product.v, 0x44), table);
}

// 2^(x y) as exp2_near has it where the result is normal, and right everywhere else: underflow, overflow, infinities,
// NaN.
INLINE Vec exp2_any(Vec x, Vec y, const Exp2Table& table) {
  const Vec magic(kExp2Magic), product = x * y;
  const Vec position = min(Vec(252.f), max(Vec(-252.f), product + magic - magic));
  const Vec rest = min(Vec(0.03125f), max(Vec(-0.03125f), product - position));
  const Vec whole = _mm512_roundscale_ps(position.v, 0x09);  // floor
  return _mm512_scalef_ps(exp2_at((position - whole) + magic, rest, table).v, whole.v);
}
