// S4D over few time steps, as the convolution that its recurrence stands for: y_t = sum_l k_l u_{t-l} + D u_t with the
// taps k_l = 2 Re sum_n weight_n decay_n^l of a channel. About length / 2 multiply-adds per element, whatever the
// modes; the gradients of decay and weight follow from those of the taps, once per call. Included inside an ISA
// namespace.

constexpr int64_t kOutputs = 8;  // computed at once

// Taps of one block: a vector per tap, or in lane mode, where a block is one channel, a number.
struct VectorTaps {
  INLINE static Vec get(const Scalar* k, int64_t l) { return Vec::load(k + l * W); }
};
struct NumberTaps {
  INLINE static Vec get(const Scalar* k, int64_t l) { return Vec::broadcast(k + l); }
};

struct TimeSeries {  // a tile, or a window into a tensor, walked in either direction
  Scalar* p;
  int64_t step;
  INLINE Vec at(int64_t t) const { return Vec::load(p + t * step); }
};
INLINE TimeSeries in_time(Scalar* p, int64_t stride, int64_t length, bool reverse) {
  if (reverse) return {p + (length - 1) * stride, -stride};
  return {p, stride};
}

template <class Taps>
NOINLINE static void convolve(TimeSeries u, const Scalar* k, int64_t length, TimeSeries y) {  // y += k * u, causal
  int64_t t = 0;
  for (; t + kOutputs <= length; t += kOutputs) {
    Vec sum[kOutputs];
    UNROLL
    for (int64_t j = 0; j < kOutputs; ++j) sum[j] = y.at(t + j);
    for (int64_t s = 0; s < t; ++s) {
      const Vec x = u.at(s);
      UNROLL
      for (int64_t j = 0; j < kOutputs; ++j) sum[j] = fma(x, Taps::get(k, t - s + j), sum[j]);
    }
    UNROLL
    for (int64_t i = 0; i < kOutputs; ++i) {
      const Vec x = u.at(t + i);
      UNROLL
      for (int64_t j = i; j < kOutputs; ++j) sum[j] = fma(x, Taps::get(k, j - i), sum[j]);
    }
    UNROLL
    for (int64_t j = 0; j < kOutputs; ++j) sum[j].store(y.p + (t + j) * y.step);
  }
  for (; t < length; ++t) {
    Vec sum = y.at(t);
    for (int64_t s = 0; s <= t; ++s) sum = fma(u.at(s), Taps::get(k, t - s), sum);
    sum.store(y.p + t * y.step);
  }
}

// dk_l = sum_t g_t u_{t-l} into a tile.
NOINLINE static void correlate(TimeSeries g, TimeSeries u, int64_t length, Scalar* dk) {
  int64_t l = 0;
  for (; l + kOutputs <= length; l += kOutputs) {
    Vec sum[kOutputs];
    UNROLL
    for (int64_t j = 0; j < kOutputs; ++j) sum[j] = Vec(Scalar(0));
    UNROLL
    for (int64_t i = 0; i < kOutputs - 1; ++i) {
      if (l + i >= length) break;
      const Vec x = g.at(l + i);
      UNROLL
      for (int64_t j = 0; j <= i; ++j) sum[j] = fma(x, u.at(i - j), sum[j]);
    }
    for (int64_t t = l + kOutputs - 1; t < length; ++t) {
      const Vec x = g.at(t);
      UNROLL
      for (int64_t j = 0; j < kOutputs; ++j) sum[j] = fma(x, u.at(t - l - j), sum[j]);
    }
    UNROLL
    for (int64_t j = 0; j < kOutputs; ++j) sum[j].store(dk + (l + j) * W);
  }
  for (; l < length; ++l) {
    Vec sum(Scalar(0));
    for (int64_t t = l; t < length; ++t) sum = fma(g.at(t), u.at(t - l), sum);
    sum.store(dk + l * W);
  }
}

// Coefficients (channels, modes, 2) of W channels from `first` on, and the powers of decay.
struct Coefficients {
  const S4dArgs& args;
  int d;
  int64_t first;

  INLINE void load(const void* source, int64_t mode, Vec* re, Vec* im) const {
    Scalar s[2][W];
    for (int64_t i = 0; i < W; ++i)
      for (int64_t part = 0; part < 2; ++part)
        s[part][i] = first + i < args.channels
                         ? static_cast<const Scalar*>(source)[((first + i) * args.modes + mode) * 2 + part]
                         : Scalar(0);
    *re = Vec::load(s[0]), *im = Vec::load(s[1]);
  }
  void store(void* target, int64_t mode, Vec re, Vec im, bool add) const {
    Scalar s[2][W];
    re.store(s[0]), im.store(s[1]);
    for (int64_t i = 0; i < W && first + i < args.channels; ++i)
      for (int64_t part = 0; part < 2; ++part) {
        Scalar* p = static_cast<Scalar*>(target) + ((first + i) * args.modes + mode) * 2 + part;
        *p = add ? *p + s[part][i] : s[part][i];
      }
  }
  void taps(Scalar* k) const {  // [length][W]
    memset(k, 0, size_t(args.length * W) * sizeof(Scalar));
    for (int64_t n = 0; n < args.modes; ++n) {
      Vec a_re, a_im, p_re, p_im;
      load(args.dir[d].decay, n, &a_re, &a_im);
      load(args.dir[d].weight, n, &p_re, &p_im);
      p_re = p_re + p_re, p_im = p_im + p_im;
      for (int64_t l = 0; l < args.length; ++l) {
        (Vec::load(k + l * W) + p_re).store(k + l * W);
        const Vec re = fnma(p_im, a_im, p_re * a_re);
        p_im = fma(p_im, a_re, p_re * a_im);
        p_re = re;
      }
    }
  }
  // dweight = sum_l 2 dk_l conj(decay^l) and ddecay = conj(weight) sum_l 2 l dk_l conj(decay^(l-1)).
  void gradients(const Scalar* dk, void* ddecay, void* dweight, bool add_decay, bool add_weight) const {
    const Vec zero(Scalar(0)), one(Scalar(1));
    for (int64_t n = 0; n < args.modes; ++n) {
      Vec a_re, a_im, c_re, c_im, p_re = one, p_im = zero, w_re = zero, w_im = zero, s_re = zero, s_im = zero;
      load(args.dir[d].decay, n, &a_re, &a_im);
      load(args.dir[d].weight, n, &c_re, &c_im);
      for (int64_t l = 0; l < args.length; ++l) {
        const Vec g = Vec::load(dk + l * W) + Vec::load(dk + l * W);
        w_re = fma(g, p_re, w_re), w_im = fnma(g, p_im, w_im);
        if (l + 1 < args.length) {
          const Vec next = Vec::load(dk + (l + 1) * W), slope = (next + next) * Vec(Scalar(l + 1));
          s_re = fma(slope, p_re, s_re), s_im = fnma(slope, p_im, s_im);
        }
        const Vec re = fnma(p_im, a_im, p_re * a_re);
        p_im = fma(p_im, a_re, p_re * a_im);
        p_re = re;
      }
      if (dweight) store(dweight, n, w_re, w_im, add_weight);
      if (ddecay) store(ddecay, n, fma(c_im, s_im, c_re * s_re), fnma(c_im, s_re, c_re * s_im), add_decay);
    }
  }
};

// The taps of all channels: [blocks][length][W], in lane mode [channels][length].
static void fill_taps(const Plan& plan, const S4dArgs& args, int d, Scalar* taps) {
  const int64_t L = args.length;
  Memory tile(L * W * int64_t(sizeof(Scalar)), false);
  for (int64_t first = 0; first < args.channels; first += W) {
    Scalar* k = plan.lane_mode ? tile.data() : taps + first / W * L * W;
    Coefficients{args, d, first}.taps(k);
    for (int64_t i = 0; plan.lane_mode && i < W && first + i < args.channels; ++i)
      for (int64_t l = 0; l < L; ++l) taps[(first + i) * L + l] = k[l * W + i];
  }
}
INLINE void convolve_block(const Plan& plan, const Scalar* taps, int64_t block, int64_t length, TimeSeries u,
                           TimeSeries y) {
  if (plan.lane_mode)
    convolve<NumberTaps>(u, taps + block * length, length, y);
  else
    convolve<VectorTaps>(u, taps + block * length * W, length, y);
}
