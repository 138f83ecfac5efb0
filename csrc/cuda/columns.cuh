// How kernels without state dimensions walk tensors: a thread owns a column, which is one sequence of one channel, and
// takes it through time in chunks of 8 steps. The 32 columns of a warp are neighbours along what lies contiguous:
//
//   channels or length contiguous   a warp is 32 channels of one sequence
//   lanes contiguous                a warp is 32 sequences of one channel
//
// so that a warp reads a time step as one run of memory. Where length is contiguous a chunk is one or two vector loads
// of 16 bytes of each column instead. Any other strides work too. Warps with the same channels are a group, and each of
// its sequences, or each 32 of them, is a unit: what is per channel stays in registers while a warp goes through units.
#pragma once

#include "cuda/math.cuh"
#include "cuda/storage.cuh"

namespace ssmvdm::cuda {

constexpr int kWarp = 32;
constexpr int kChunk = 8;  // time steps that are read or written at once

struct Column {
  int64_t group, batch, lane, channel;
  bool exists;
};

struct Columns {
  int64_t sequences, channels, lanes;
  bool over_lanes;  // the columns of a warp are sequences
  int64_t groups, units;

  // Channels of a group: as many tables of what is per channel lie side by side.
  __host__ __device__ int64_t width() const { return over_lanes ? 1 : kWarp; }
};

inline Columns columns_of(int64_t batch, int64_t channels, int64_t lanes, const SequenceView& like) {
  Columns c{batch * lanes, channels, lanes, like.row_stride != 1 && like.time_stride != 1, 0, 0};
  const auto warps = [](int64_t count) { return (count + kWarp - 1) / kWarp; };
  c.groups = c.over_lanes ? channels : warps(channels);
  c.units = c.over_lanes ? warps(c.sequences) : c.sequences;
  return c;
}

// Blocks for `count` items of which each block takes `each`, going round where the grid ends.
inline dim3 blocks_for(int64_t count, int64_t each) {
  const int64_t blocks = (count + each - 1) / each, most = (int64_t(1) << 31) - 1;
  return dim3(unsigned(blocks < most ? blocks : most));
}

// Column of this thread.
__device__ inline Column column_of(const Columns& c, int64_t group, int64_t unit) {
  const int index = int(threadIdx.x) % kWarp;
  const int64_t sequence = c.over_lanes ? unit * kWarp + index : unit;
  const int64_t channel = c.over_lanes ? group : group * kWarp + index;
  const Quotient at = c.lanes == 1 ? Quotient{sequence, 0} : divide(sequence, c.lanes);
  return {group, at.whole, at.rest, channel, sequence < c.sequences && channel < c.channels};
}

// Neighbouring jobs are neighbours in memory.
__device__ inline Column column_of_job(const Columns& c, int64_t job) {
  if (c.over_lanes) {
    const Quotient at = divide(job, c.units);
    return column_of(c, at.whole, at.rest);
  }
  const Quotient at = divide(job, c.groups);
  return column_of(c, at.rest, at.whole);
}

// A tensor to be walked.
struct Track {
  Strided tensor;
  bool has_vectors;  // the chunks of a column are aligned vectors

  __host__ __device__ explicit operator bool() const { return bool(tensor); }
};

inline Track track(const SequenceView& view) {
  const Strided t = strided(view);
  const int64_t per_vector = view.dtype == DType::kFloat32 ? 4 : 8;
  const bool has_vectors = t.time == 1 && t.batch % per_vector == 0 && t.row % per_vector == 0 &&
                           t.lane % per_vector == 0 && reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
  return {t, has_vectors};
}

// Scratch memory of float32 (sequence, channel, time), in the order in which warps read it.
inline Track float_track(float* data, const Columns& c, int64_t length) {
  const int64_t sequence = c.over_lanes ? 1 : length * c.channels, row = c.over_lanes ? length * c.sequences : 1;
  return {{data, c.lanes * sequence, 0, row, c.over_lanes ? c.sequences : c.channels, sequence, 1}, false};
}

template <class T>
struct alignas(16) Vector {
  static constexpr int kCount = 16 / sizeof(T);
  T value[kCount];
};

// One column of a track that holds numbers of type T.
template <class T>
struct Walk {
  char* data;
  int64_t step;  // bytes
  bool has_vectors;

  __device__ Walk(char* data_, int64_t step_, bool has_vectors_)
      : data(data_), step(step_), has_vectors(has_vectors_) {}
  __device__ Walk(const Track& track, const Column& c) {
    const Strided& x = track.tensor;
    const int64_t offset = c.batch * x.batch + c.lane * x.lane + c.channel * x.row;
    data = static_cast<char*>(x.data) + offset * int64_t(sizeof(T));
    step = x.time * int64_t(sizeof(T));
    has_vectors = track.has_vectors;
  }
  // The same bytes taken for numbers of another type.
  template <class S>
  __device__ Walk<S> as() const {
    return {data, step, has_vectors};
  }
  __device__ float at(int64_t t) const { return to_float(*reinterpret_cast<const T*>(data + t * step)); }
  __device__ void put(int64_t t, float x) const { *reinterpret_cast<T*>(data + t * step) = from_float<T>(x); }

  // Steps t .. t + 7, or as many as there are before `length`, and zeros.
  __device__ void load(int64_t t, int64_t length, float* x) const {
    const char* p = data + t * step;
    if (length - t < kChunk) {
      const int left = int(length - t);
#pragma unroll
      for (int i = 0; i < kChunk; ++i, p += step) x[i] = i < left ? to_float(*reinterpret_cast<const T*>(p)) : 0.f;
    } else if (has_vectors) {
#pragma unroll
      for (int i = 0; i < kChunk; i += Vector<T>::kCount, p += sizeof(Vector<T>)) {
        const Vector<T> v = *reinterpret_cast<const Vector<T>*>(p);
#pragma unroll
        for (int k = 0; k < Vector<T>::kCount; ++k) x[i + k] = to_float(v.value[k]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i, p += step) x[i] = to_float(*reinterpret_cast<const T*>(p));
    }
  }
  __device__ void store(int64_t t, int64_t length, const float* x) const {
    char* p = data + t * step;
    if (length - t < kChunk) {
      const int left = int(length - t);
#pragma unroll
      for (int i = 0; i < kChunk; ++i, p += step)
        if (i < left) *reinterpret_cast<T*>(p) = from_float<T>(x[i]);
    } else if (has_vectors) {
#pragma unroll
      for (int i = 0; i < kChunk; i += Vector<T>::kCount, p += sizeof(Vector<T>)) {
        Vector<T> v;
#pragma unroll
        for (int k = 0; k < Vector<T>::kCount; ++k) v.value[k] = from_float<T>(x[i + k]);
        *reinterpret_cast<Vector<T>*>(p) = v;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i, p += step) *reinterpret_cast<T*>(p) = from_float<T>(x[i]);
    }
  }
};

}  // namespace ssmvdm::cuda
