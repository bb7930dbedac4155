// sample on the GPU. The first kernel finds the largest logit of each slice of kSampleSlice tokens of a row. The second
// computes the weight of each token, exp((logit - largest) / temperature), and the sum of each slice. In the third a
// block finds the token of a row: a random share of the total is drawn, and the token is the one at which the running
// sum of weights passes that share.
//
// Weights are added as whole multiples of 2^-44, so sums do not depend on the order. Without top-k and top-p, tokens
// are taken in the order of their ids: the block first finds the slice, then the token. With top-k, top-p or min-p,
// tokens are taken in order of falling logit, equal ones in order of their ids. Nothing is sorted: `select` finds the
// places at which the count of top-k, the share of top-p and the drawn share are passed.
//
// The token is the same as the host's (sampling.cpp), unless the drawn share is so close to the border between two
// tokens that rounding decides: the host adds doubles, and applies top-p before it rounds weights to float. The
// difference is below 1e-7 of the total.
// Bytes: the first two kernels read the logits once each, the second writes the weights, and the third reads one slice
// of them. With top-k or top-p the third reads the logits up to 13 times and the weights up to 12 times, from the
// cache.
#include <climits>

#include "llm/base/random.h"
#include "llm/device/cuda.h"
#include "llm/graph/kernel.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/reduce_cuda.h"
#include "llm/ops/sample_cuda.h"
#include "llm/ops/sampling.h"

namespace llm::cuda {
namespace {

constexpr int kThreads = 256, kDrawThreads = 1024, kDrawWarps = kDrawThreads / 32, kBins = 256;
constexpr uint64_t kStream = stream_of("sample");

using Sum = unsigned long long;  // of weights, in units of 2^-44

// Of one row; the kernels are given the first one.
template <class T>
struct Sampling {
  const T* logits;  // (V)
  int64_t stride;   // of the logits' rows, of which the first `vocabulary` tokens may be drawn
  int vocabulary, slices;
  Sum* sums;       // (slices)
  float* largest;  // (slices)
  int* where;      // (slices), the token with the largest logit
  int* culprit;    // (slices), the first token whose logit is NaN or +inf; INT_MAX if there is none
  float* weights;  // (V)
  const SampleRow* options;
  Draw* draw;

  __device__ Sampling row(unsigned number) const {
    const int64_t row = number;
    return {logits + row * stride,
            stride,
            vocabulary,
            slices,
            sums + row * slices,
            largest + row * slices,
            where + row * slices,
            culprit + row * slices,
            weights + row * vocabulary,
            options + row,
            draw + row};
  }
};

// Of some tokens the one with the largest logit, among equals the one with the lowest id; and `culprit`, the first
// token whose logit is NaN or +inf.
struct Best {
  float logit = -INFINITY;
  int id = INT_MAX, culprit = INT_MAX;

  __device__ void take(const Best& other) {
    if (other.logit > logit || (other.logit == logit && other.id < id)) logit = other.logit, id = other.id;
    culprit = min(culprit, other.culprit);
  }
  __device__ void take_from_warp() {
    for (int offset = 16; offset > 0; offset /= 2)
      take({__shfl_xor_sync(simt::kWholeWarp, logit, offset), __shfl_xor_sync(simt::kWholeWarp, id, offset),
            __shfl_xor_sync(simt::kWholeWarp, culprit, offset)});
  }
};

// The best token of the whole block, in all of its threads.
template <int kWarps>
__device__ Best best_of_block(Best best, Best (&of_warp)[kWarps]) {
  best.take_from_warp();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) best.take(of_warp[warp]);
  return best;
}

template <class T>
__device__ Best best_of_slices(const Sampling<T>& p) {
  Best best;
  for (int slice = static_cast<int>(threadIdx.x); slice < p.slices; slice += static_cast<int>(blockDim.x))
    best.take({p.largest[slice], p.where[slice], p.culprit[slice]});
  return best;
}

__device__ inline float weight_of(float logit, float largest, double temperature) {
  return static_cast<float>(exp((static_cast<double>(logit) - static_cast<double>(largest)) / temperature));
}
__device__ inline Sum whole(float weight) { return static_cast<Sum>(static_cast<double>(weight) * 0x1p44); }

struct LargestShared {
  Best of_warp[kThreads / 32];
};

// A block takes a slice of a row.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_largest_kernel(const Sampling<T> all) {
  auto& s = simt::shared_memory<LargestShared>();
  const Sampling<T> p = all.row(blockIdx.y);
  simt::let_next_start();
  simt::wait_for_inputs();
  Best best;
  for (int i = static_cast<int>(threadIdx.x); i < kSampleSlice; i += kThreads) {
    const int id = static_cast<int>(blockIdx.x * kSampleSlice) + i;
    if (!simt::in_bounds(id < p.vocabulary)) continue;
    const float logit = to_float(p.logits[id]);
    logit < INFINITY ? best.take({logit, id, INT_MAX}) : best.take({-INFINITY, INT_MAX, id});
  }
  best = best_of_block(best, s.of_warp);
  if (threadIdx.x > 0) return;
  p.largest[blockIdx.x] = best.logit;
  p.where[blockIdx.x] = best.id;
  p.culprit[blockIdx.x] = best.culprit;
}

struct WeighShared {
  Best of_warp[kThreads / 32];
  Sum sums[32];
};

// A block takes a slice of a row.
template <class T>
__global__ void __launch_bounds__(kThreads) sample_weigh_kernel(const Sampling<T> all) {
  auto& s = simt::shared_memory<WeighShared>();
  const Sampling<T> p = all.row(blockIdx.y);
  simt::let_next_start();
  simt::wait_for_inputs();
  const double temperature = p.options->temperature;
  const Best best = best_of_block(best_of_slices(p), s.of_warp);
  if (temperature <= 0 || best.culprit < INT_MAX || best.logit == -INFINITY) return;  // the same for the whole block
  Sum sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < kSampleSlice; i += kThreads) {
    const int id = static_cast<int>(blockIdx.x * kSampleSlice) + i;
    if (!simt::in_bounds(id < p.vocabulary)) continue;
    const float weight = weight_of(to_float(p.logits[id]), best.logit, temperature);
    p.weights[id] = weight;
    sum += whole(weight);
  }
  sum = block_sum(sum, s.sums);
  if (threadIdx.x == 0) p.sums[blockIdx.x] = sum;
}

struct DrawShared {
  Best of_warp[kDrawWarps];
  Sum of_warps[kDrawWarps], sums[32], before;
  int found;
  Sum counts[kBins], weights[kBins];
};

// Finds the first item at which the running sum of value(0), value(1), ... passes `target`, and the sum before that
// item. The sum of all items must be above `target`. All threads of the block take part.
struct Crossing {
  int item;
  Sum before;
};
template <class Value>
__device__ Crossing find_crossing(int count, Sum target, DrawShared& s, Value value) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Sum start = 0;
  for (int first = 0; first < count; first += kDrawThreads) {
    const int item = first + static_cast<int>(threadIdx.x);
    const Sum own = item < count ? value(item) : 0;
    Sum running = own;
    for (int offset = 1; offset < 32; offset *= 2) {
      const Sum lower = __shfl_up_sync(simt::kWholeWarp, running, static_cast<unsigned>(offset));
      if (lane >= offset) running += lower;
    }
    if (lane == 31) s.of_warps[warp] = running;
    __syncthreads();
    for (int w = 0; w < warp; ++w) running += s.of_warps[w];
    running += start;
    for (int w = 0; w < kDrawWarps; ++w) start += s.of_warps[w];
    if (running > target && running - own <= target) s.found = item, s.before = running - own;
    __syncthreads();
    if (start > target) break;
  }
  return {s.found, s.before};
}

// Keys are ordered like the logits.
__device__ inline uint32_t key_of(float logit) {
  const uint32_t bits = bits_of(logit == 0 ? 0.0f : logit);  // -0 is equal to 0
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}
__device__ inline float logit_of(uint32_t key) { return float_of_bits(key & 0x80000000 ? key & 0x7fffffff : ~key); }

// Finds the token at which the running sum of weights (by_count: the running count) passes `target`; tokens are taken
// in order of falling logit. Gives the key of that token's logit, and the count and the sum of weights of the tokens
// with larger logits. The key is found 8 bits at a time, from sums over 256 bins.
struct Selected {
  uint32_t key = 0;
  Sum count = 0, weight = 0;
};
template <class T>
__device__ Selected select(const Sampling<T>& p, bool by_count, Sum target, DrawShared& s) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Selected selected;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kDrawThreads) s.counts[bin] = s.weights[bin] = 0;
    __syncthreads();
    for (int first = 0; first < p.vocabulary; first += kDrawThreads) {
      const int id = first + static_cast<int>(threadIdx.x);
      uint32_t key = 0;
      Sum weight = 0;
      bool counts = false;
      if (simt::in_bounds(id < p.vocabulary)) {
        key = key_of(to_float(p.logits[id]));
        counts = shift == 24 || key >> (shift + 8) == selected.key >> (shift + 8);
        if (counts) weight = whole(p.weights[id]);
      }
      // Most tokens of a warp share few bins, so the warp adds up what goes to a bin before it adds to the bin.
      const int bin = kBins - 1 - static_cast<int>(key >> shift & (kBins - 1));
      for (unsigned left = __ballot_sync(simt::kWholeWarp, counts); left;) {
        const int leader = __ffs(static_cast<int>(left)) - 1;
        const int of_leader = __shfl_sync(simt::kWholeWarp, bin, leader);
        const unsigned same = __ballot_sync(simt::kWholeWarp, counts && bin == of_leader);
        const Sum sum = warp_sum(counts && bin == of_leader ? weight : Sum{0});
        if (lane == leader) {
          atomicAdd(&s.counts[of_leader], static_cast<Sum>(__popc(same)));
          atomicAdd(&s.weights[of_leader], sum);
        }
        left &= ~same;
      }
    }
    __syncthreads();
    const Crossing crossing = find_crossing(kBins, target - (by_count ? selected.count : selected.weight), s,
                                            [&](int bin) { return by_count ? s.counts[bin] : s.weights[bin]; });
    for (int bin = 0; bin < crossing.item; ++bin) selected.count += s.counts[bin], selected.weight += s.weights[bin];
    selected.key |= static_cast<uint32_t>(kBins - 1 - crossing.item) << shift;
    __syncthreads();
  }
  return selected;
}

// Finds the token at which the running sum of weights passes the share `uniform` of the total; tokens are taken in the
// order of their ids.
template <class T>
__device__ int draw_by_id(const Sampling<T>& p, double uniform, Sum total, DrawShared& s) {
  const Sum target = min(static_cast<Sum>(static_cast<double>(total) * uniform), total - 1);
  const Crossing slice = find_crossing(p.slices, target, s, [&](int i) { return p.sums[i]; });
  const int first = slice.item * static_cast<int>(kSampleSlice);
  const int count = min(static_cast<int>(kSampleSlice), p.vocabulary - first);
  return first +
         find_crossing(count, target - slice.before, s, [&](int i) { return whole(p.weights[first + i]); }).item;
}

// The same among the tokens that top-k, top-p and min-p leave, taken in order of falling logit, equal ones in order of their
// ids.
template <class T>
__device__ int draw_by_likelihood(const Sampling<T>& p, const SampleRow& options, double uniform, Sum total,
                                  float largest, DrawShared& s) {
  const double temperature = options.temperature, top_p = options.top_p, min_p = options.min_p;
  const int64_t top_k = options.top_k;
  const auto each = [&](const Selected& tokens) {  // the weight of each token with that key
    return whole(weight_of(logit_of(tokens.key), largest, temperature));
  };
  if (top_k > 0 && top_k < p.vocabulary) {
    const Selected last = select(p, true, static_cast<Sum>(top_k - 1), s);
    total = last.weight + (static_cast<Sum>(top_k) - last.count) * each(last);
  }
  if (top_p < 1) {
    const Sum reached = max(static_cast<Sum>(ceil(static_cast<double>(total) * top_p)), Sum{1});
    const Selected last = select(p, false, min(reached, total) - 1, s);
    total = last.weight + ((min(reached, total) - 1 - last.weight) / each(last) + 1) * each(last);
  }
  if (min_p > 0) {    // what it leaves is a beginning of the same order, so the shorter one counts
    __syncthreads();  // the sum before has been read
    Sum sum = 0;
    for (int id = static_cast<int>(threadIdx.x); id < p.vocabulary; id += kDrawThreads)
      if (static_cast<double>(p.weights[id]) >= min_p) sum += whole(p.weights[id]);
    total = min(total, block_sum(sum, s.sums));
  }
  const Sum target = min(static_cast<Sum>(static_cast<double>(total) * uniform), total - 1);
  const Selected drawn = select(p, false, target, s);
  const Sum rank = (target - drawn.weight) / each(drawn);  // of the token among those with the same logit, by id
  const int part = (p.vocabulary + kDrawThreads - 1) / kDrawThreads;
  const auto has_key = [&](int id) { return id < p.vocabulary && key_of(to_float(p.logits[id])) == drawn.key; };
  const Crossing of_thread = find_crossing(kDrawThreads, rank, s, [&](int i) {
    Sum count = 0;
    for (int id = i * part; id < (i + 1) * part; ++id) count += has_key(id);
    return count;
  });
  return of_thread.item * part + find_crossing(part, rank - of_thread.before, s, [&](int i) {
                                   return static_cast<Sum>(has_key(of_thread.item * part + i));
                                 }).item;
}

__device__ inline double uniform_of(uint64_t seed, int64_t index) {
  const auto b = philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                         static_cast<uint32_t>(kStream), static_cast<uint32_t>(kStream >> 32)},
                        {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<double>((uint64_t{b[1]} << 32 | b[0]) >> 11) * 0x1p-53;
}

// A block takes a row.
template <class T>
__global__ void __launch_bounds__(kDrawThreads) sample_draw_kernel(const Sampling<T> all) {
  auto& s = simt::shared_memory<DrawShared>();
  const Sampling<T> p = all.row(blockIdx.x);
  simt::wait_for_inputs();
  const SampleRow o = *p.options;
  const Best best = best_of_block(best_of_slices(p), s.of_warp);
  Draw draw;
  if (o.temperature < 0) {
    // nothing is drawn
  } else if (best.culprit < INT_MAX) {
    draw.status = Draw::not_finite;
    draw.culprit = best.culprit;
    draw.logit = to_float(p.logits[best.culprit]);
  } else if (best.logit == -INFINITY) {
    draw.status = Draw::no_chance;
  } else if (o.temperature == 0) {
    draw.id = best.id;
  } else {
    Sum sum = 0;
    for (int slice = static_cast<int>(threadIdx.x); slice < p.slices; slice += kDrawThreads) sum += p.sums[slice];
    const Sum total = block_sum(sum, s.sums);
    const double uniform = uniform_of(o.seed, o.index);
    const bool cut = (o.top_k > 0 && o.top_k < p.vocabulary) || o.top_p < 1 || o.min_p > 0;
    draw.id = cut ? draw_by_likelihood(p, o, uniform, total, best.logit, s) : draw_by_id(p, uniform, total, s);
  }
  if (threadIdx.x == 0) *p.draw = draw;
}

template <class T>
void sample_as(const KernelCall& call) {
  const int64_t rows = call.in_shape(0).rows(), vocabulary = drawable_tokens(call), slices = sample_slices(vocabulary);
  auto* const sums = call.workspace<Sum>();
  auto* const largest = reinterpret_cast<float*>(sums + rows * slices);
  auto* const where = reinterpret_cast<int*>(largest + rows * slices);
  const Sampling<T> p{.logits = call.in<T>(0),
                      .stride = call.in_shape(0).last(),
                      .vocabulary = static_cast<int>(vocabulary),
                      .slices = static_cast<int>(slices),
                      .sums = sums,
                      .largest = largest,
                      .where = where,
                      .culprit = where + rows * slices,
                      .weights = reinterpret_cast<float*>(where + 2 * rows * slices),
                      .options = call.in<SampleRow>(1),
                      .draw = call.out<Draw>(0)};
  CUstream_st* const stream = call.cuda->stream();
  const dim3 grid(static_cast<unsigned>(slices), static_cast<unsigned>(rows));
  simt::launch_early(stream, grid, dim3(kThreads), sizeof(LargestShared), sample_largest_kernel<T>, p);
  simt::launch_early(stream, grid, dim3(kThreads), sizeof(WeighShared), sample_weigh_kernel<T>, p);
  simt::launch_early(stream, dim3(static_cast<unsigned>(rows)), dim3(kDrawThreads), sizeof(DrawShared),
                     sample_draw_kernel<T>, p);
}

}  // namespace

void sample(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? sample_as<bf16>(call) : sample_as<float>(call);
}

}  // namespace llm::cuda
