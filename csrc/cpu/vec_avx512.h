// Sixteen float32 lanes on AVX-512 (F, BW, DQ, VL). Included inside an ISA namespace; see kernels_avx512.cpp.

struct Vec {
  using Scalar = float;
  static constexpr int W = 16;
  __m512 v;

  INLINE Vec() {}
  INLINE Vec(__m512 x) : v(x) {}
  INLINE Vec(float x) : v(_mm512_set1_ps(x)) {}
  INLINE static Vec broadcast(const float* p) { return _mm512_set1_ps(*p); }
  INLINE static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  INLINE static Vec load(const BFloat16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
  INLINE static Vec load(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  // Past the caches: nothing is read first, and nothing that is in use makes way.
  static constexpr bool kStreams = true;
  INLINE void stream(float* p) const { _mm512_stream_ps(p, v); }
  INLINE void store(BFloat16* p) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(r));
  }
  INLINE void store(Float16* p) const {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
};

INLINE void finish_streams() { _mm_sfence(); }  // before another thread reads what was streamed

INLINE Vec operator+(Vec a, Vec b) { return _mm512_add_ps(a.v, b.v); }
INLINE Vec operator-(Vec a, Vec b) { return _mm512_sub_ps(a.v, b.v); }
INLINE Vec operator*(Vec a, Vec b) { return _mm512_mul_ps(a.v, b.v); }
INLINE Vec operator/(Vec a, Vec b) { return _mm512_div_ps(a.v, b.v); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a.v, b.v); }
INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a.v, b.v); }
INLINE Vec abs(Vec a) { return _mm512_abs_ps(a.v); }
INLINE Vec select_negative(Vec x, Vec if_negative, Vec otherwise) {
  return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x.v)), otherwise.v, if_negative.v);
}
INLINE Vec zero_where_less(Vec a, Vec b, Vec x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ), x.v);
}
INLINE bool all_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ) == 0xffff; }
INLINE Vec max_bits(Vec a, Vec b) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)));
}
// acc[i] + acc[4 + i] + acc[8 + i] + acc[12 + i] += the sum over the sixteen lanes of the i-th argument.
constexpr int kReduceWidth = 16;
INLINE void accumulate4(float* acc, Vec a, Vec b, Vec c, Vec d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
  const __m512d abd = _mm512_castps_pd(ab), cdd = _mm512_castps_pd(cd);
  const __m512 s =
      _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(abd, cdd)), _mm512_castpd_ps(_mm512_unpackhi_pd(abd, cdd)));
  _mm512_storeu_ps(acc, _mm512_add_ps(_mm512_loadu_ps(acc), s));
}

// sums[i] = or += acc[i] + acc[4 + i] + acc[8 + i] + acc[12 + i].
INLINE void finish4(const float* acc, float* sums, bool add) {
  const __m256 half = _mm256_add_ps(_mm256_loadu_ps(acc), _mm256_loadu_ps(acc + 8));
  const __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm_storeu_ps(sums, add ? _mm_add_ps(_mm_loadu_ps(sums), s) : s);
}

INLINE void transpose(Vec* r) {  // 16 x 16
  __m512 t[16], s[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  for (int i = 0; i < 4; ++i) {
    s[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    s[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    s[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    s[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 low = _mm512_shuffle_f32x4(s[i], s[4 + i], 0x88), odd = _mm512_shuffle_f32x4(s[i], s[4 + i], 0xdd);
    const __m512 low2 = _mm512_shuffle_f32x4(s[8 + i], s[12 + i], 0x88),
                 odd2 = _mm512_shuffle_f32x4(s[8 + i], s[12 + i], 0xdd);
    r[i] = _mm512_shuffle_f32x4(low, low2, 0x88);
    r[4 + i] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
    r[8 + i] = _mm512_shuffle_f32x4(low, low2, 0xdd);
    r[12 + i] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
}
