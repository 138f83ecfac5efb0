// Eight float32 lanes on AVX2 + FMA + F16C. Included inside an ISA namespace; see kernels_avx2.cpp.

struct Vec {
  using Scalar = float;
  static constexpr int W = 8;
  __m256 v;

  INLINE Vec() {}
  INLINE Vec(__m256 x) : v(x) {}
  INLINE Vec(float x) : v(_mm256_set1_ps(x)) {}
  INLINE static Vec broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  INLINE static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  INLINE static Vec load(const BFloat16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
  INLINE static Vec load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  static constexpr bool kStreams = false;  // a vector is not a whole cache line
  INLINE void stream(float* p) const { store(p); }
  INLINE void store(BFloat16* p) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
    r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(r));
  }
  INLINE void store(Float16* p) const {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

INLINE void finish_streams() {}

INLINE Vec operator+(Vec a, Vec b) { return _mm256_add_ps(a.v, b.v); }
INLINE Vec operator-(Vec a, Vec b) { return _mm256_sub_ps(a.v, b.v); }
INLINE Vec operator*(Vec a, Vec b) { return _mm256_mul_ps(a.v, b.v); }
INLINE Vec operator/(Vec a, Vec b) { return _mm256_div_ps(a.v, b.v); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a.v, b.v); }
INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a.v, b.v); }
INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a.v); }
INLINE Vec select_negative(Vec x, Vec if_negative, Vec otherwise) {
  return _mm256_blendv_ps(otherwise.v, if_negative.v, x.v);
}
INLINE Vec zero_where_less(Vec a, Vec b, Vec x) { return _mm256_andnot_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ), x.v); }
INLINE bool all_less(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)) == 0xff; }
INLINE Vec max_bits(Vec a, Vec b) {
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.v), _mm256_castps_si256(b.v)));
}
INLINE Vec round(Vec a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// 2^n for integral n in [-126, 127].
INLINE Vec power_of_two(Vec n) {
  const __m256i k = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(k, 23));
}

// p * 2^k, where the low bits of magic_k = 1.5 * 2^23 + k hold the integer k and nothing over- or underflows.
INLINE Vec scale_by_magic(Vec p, Vec magic_k) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(magic_k.v), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p.v), shifted));
}

// acc[i] + acc[4 + i] += the sum over the eight lanes of the i-th argument.
constexpr int kReduceWidth = 8;
INLINE void accumulate4(float* acc, Vec a, Vec b, Vec c, Vec d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c.v, d.v), _mm256_unpackhi_ps(c.v, d.v));
  const __m256d abd = _mm256_castps_pd(ab), cdd = _mm256_castps_pd(cd);
  const __m256 s =
      _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(abd, cdd)), _mm256_castpd_ps(_mm256_unpackhi_pd(abd, cdd)));
  _mm256_storeu_ps(acc, _mm256_add_ps(_mm256_loadu_ps(acc), s));
}

// sums[i] = or += acc[i] + acc[4 + i].
INLINE void finish4(const float* acc, float* sums, bool add) {
  const __m128 s = _mm_add_ps(_mm_loadu_ps(acc), _mm_loadu_ps(acc + 4));
  _mm_storeu_ps(sums, add ? _mm_add_ps(_mm_loadu_ps(sums), s) : s);
}

INLINE void transpose(Vec* r) {  // 8 x 8
  __m256 t[8], s[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  for (int i = 0; i < 2; ++i) {
    s[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    s[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    s[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    s[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(s[i], s[4 + i], 0x20);
    r[4 + i] = _mm256_permute2f128_ps(s[i], s[4 + i], 0x31);
  }
}
