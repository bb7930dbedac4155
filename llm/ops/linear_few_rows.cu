// The product of few rows, y = x W^T: each weight is read once, in packs of 16 bytes, straight from memory, and
// multiplied with all rows of x. The time goes into reading the weights and, where a model is small, into the gaps
// between kernels. So this kernel also does what would otherwise take kernels before and after it: a norm of x, bias,
// activation, SwiGLU or the rotation of query and key heads, and the residual addition. It may start while the previous
// kernel ends, and then already loads its first weights.
//
// A warp computes two columns of y: two neighbours, or the two that an epilogue needs together (gate and up; the two
// channels that a rotation combines). Its lanes take neighbouring packs of both rows of W, kAtOnce chunks of 32 packs
// at a time; each lane adds up its products, then the lanes' sums are added. Where there are few columns, up to 8 warps
// share a pair of columns, and the warps' sums are added too. A block goes on to further columns in steps of the grid.
// Each value is rounded where the separate ops would round it.
// Bytes: W and bias once a launch; x and a norm's weights once a block.
#include <algorithm>

#include "llm/device/cuda.h"
#include "llm/device/few_rows_cuda.h"
#include "llm/graph/kernel.h"
#include "llm/graph/op.h"
#include "llm/ops/activation_cuda.h"
#include "llm/ops/linear_cuda.h"
#include "llm/ops/reduce_cuda.h"

namespace llm::cuda {
namespace {

constexpr int kWarps = kFewRowsWarps, kThreads = kWarps * 32;
constexpr int kAtOnce = 4;      // chunks of each column that a warp loads at once
constexpr int kBlocksOfSm = 3;  // of a multiprocessor, for which its registers suffice

template <class T>
struct FewRows {
  const T* x;              // (rows, k)
  const T* weight;         // (n, k)
  const T* bias;           // (n), or null
  const T* addend;         // (rows, n), or null
  const T* norm_weight;    // (k), or null: no norm of x
  const T* norm_bias;      // (k), or null
  const float* angles;     // (tokens, 2 half): cosines, then sines; or null
  T* y;                    // (rows, n), or null
  T* activated;            // (rows, n), of SwiGLU (rows, n / 2), or null
  int n, k, rows, splits;  // splits: how many warps share a pair of columns
  bool centered;           // the norm is LayerNorm, not RMSNorm
  float epsilon;
  ActivationKind activation;
  int tokens, turned, half;  // tokens of a sequence; number of rotated heads; half the channels of a head
  int rows_of_group;         // grid.y goes over groups of rows; with several of them a batch is one sequence

  __device__ int pairs() const { return (n + 1) / 2; }

  // The product of group number `number` of rows_of_group rows.
  __device__ FewRows group(int number) const {
    FewRows g = *this;
    if (number == 0 && rows <= rows_of_group) return g;
    const int64_t first = int64_t{number} * rows_of_group;
    g.rows = min(rows - static_cast<int>(first), rows_of_group);
    g.x = x + first * k;
    if (addend) g.addend = addend + first * n;
    if (angles) g.angles = angles + first % tokens * 2 * half;
    if (y) g.y = y + first * n;
    if (activated) g.activated = activated + first * (activation == ActivationKind::swiglu ? n / 2 : n);
    return g;
  }
};

// A pack as 32-bit words: of a pack of bf16 the compiler would load each value by itself. load_once marks what it reads
// to be evicted from the caches first.
template <class T, int kWidth>
struct Words {
  uint4 words;
  __device__ static Words load(const void* from) { return {*static_cast<const uint4*>(from)}; }
  __device__ static Words of(const simt::Pack<T>& pack) {
    Words w;
    std::memcpy(&w.words, &pack, sizeof w.words);
    return w;
  }
  __device__ static Words load_once(const T* from) { return {__ldcs(reinterpret_cast<const uint4*>(from))}; }
  __device__ float get(int i) const {
    const int at = sizeof(T) == 4 ? i : i / 2;
    const uint32_t word = at == 0 ? words.x : at == 1 ? words.y : at == 2 ? words.z : words.w;
    return float_of_bits(sizeof(T) == 4 ? word : i % 2 ? word & 0xffff0000 : word << 16);
  }
};
template <class T>
struct Words<T, 1> {
  T value;
  __device__ static Words load(const void* from) { return {*static_cast<const T*>(from)}; }
  __device__ static Words load_once(const T* from) { return {*from}; }
  __device__ float get(int) const { return to_float(value); }
};

// The two columns of y that a pair stands for.
struct Columns {
  int first, second;
  template <class T>
  __device__ Columns(const FewRows<T>& p, int pair) : first(2 * pair), second(2 * pair + 1) {
    if (p.activation == ActivationKind::swiglu) first = pair, second = pair + p.n / 2;
    if (!p.angles || pair >= p.turned * p.half) return;
    first = pair / p.half * 2 * p.half + pair % p.half;
    second = first + p.half;
  }
};

template <int kRows>
struct alignas(16) FewRowsShared {
  float sums[2][kWarps][2][kRows];  // [turn][warp][column of the pair][row], over the warp's part of k; turn alternates
  float of_norm[2][kWarps];
  // Behind this struct lie x (kRows, 32 chunks) in packs, then a norm's weight and bias.
};

// The sum over the block, in all of its threads. `parts` may be used again after the barrier of another sum.
__device__ inline float sum_over_block(float x, float (&parts)[kWarps]) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) x += parts[warp];
  return x;
}

__device__ inline float activate(ActivationKind kind, float x) {
  return kind == ActivationKind::gelu ? Gelu::value(x) : Relu2::value(x);
}

template <class T>
__device__ float rounded(float x) {
  return to_float(simt::stored<T>(x));
}

// What the two columns of one row need at the end besides their sums; it is loaded while the weights are.
struct Ends {
  float bias[2] = {}, addend[2] = {}, cosine = 1, sine = 0;

  template <class T>
  __device__ void load_bias(const FewRows<T>& p, int pair) {
    const Columns at(p, pair);
    if (!p.bias || pair >= p.pairs()) return;
    bias[0] = to_float(p.bias[at.first]);
    if (simt::in_bounds(at.second < p.n)) bias[1] = to_float(p.bias[at.second]);
  }
  template <class T>
  __device__ void load_inputs(const FewRows<T>& p, int row, int pair) {
    const Columns at(p, pair);
    if (row >= p.rows || pair >= p.pairs()) return;
    if (p.addend) {
      addend[0] = to_float(p.addend[int64_t{row} * p.n + at.first]);
      if (simt::in_bounds(at.second < p.n)) addend[1] = to_float(p.addend[int64_t{row} * p.n + at.second]);
    }
    if (p.angles && pair < p.turned * p.half) {
      const float* angle = p.angles + row % p.tokens * 2 * p.half + pair % p.half;
      cosine = angle[0];
      sine = angle[p.half];
    }
  }
};

// Computes y and the activated output of one row and two columns from the sums, and stores them.
template <class T>
__device__ void finish(const FewRows<T>& p, int row, int pair, const float (&sums)[2], const Ends& ends) {
  const Columns at(p, pair);
  const float x1 = rounded<T>(sums[0] + ends.bias[0]), x2 = rounded<T>(sums[1] + ends.bias[1]);
  if (p.activation == ActivationKind::swiglu) {
    p.activated[int64_t{row} * (p.n / 2) + pair] = simt::stored<T>(x1 * sigmoid(x1) * x2);
    return;
  }
  const bool turns = p.angles && pair < p.turned * p.half;
  const float y[2] = {turns ? x1 * ends.cosine - x2 * ends.sine : x1 + ends.addend[0],
                      turns ? x2 * ends.cosine + x1 * ends.sine : x2 + ends.addend[1]};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int column = c == 0 ? at.first : at.second;
    if (!simt::in_bounds(column < p.n)) continue;
    if (p.y) p.y[int64_t{row} * p.n + column] = simt::stored<T>(y[c]);
    if (p.activated) p.activated[int64_t{row} * p.n + column] = simt::stored<T>(activate(p.activation, y[c]));
  }
}

template <class T, int kWidth, int kRows, bool kStaged>
__global__ void __launch_bounds__(kThreads, kRows >= 4 ? 2 : kBlocksOfSm)
    few_rows_kernel(const __grid_constant__ FewRows<T> all) {
  using Pack = Words<T, kWidth>;
  const FewRows<T> p = all.group(static_cast<int>(blockIdx.y));
  auto& s = simt::shared_memory<FewRowsShared<kRows>>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int packs = p.k / kWidth, chunks = (packs + 31) / 32, padded = chunks * 32;
  const int part = warp % p.splits, of_block = kWarps / p.splits;  // this warp's part of k; pairs of columns of a block
  const int groups = (p.pairs() + of_block - 1) / of_block;
  const auto pair_of = [&](int group) { return group * of_block + warp / p.splits; };
  auto* const x = reinterpret_cast<Pack*>(&s + 1);  // (kRows, padded)
  Pack *const norm_weight = x + kRows * padded, *const norm_bias = norm_weight + padded;

  Pack weights[kAtOnce][2];
  const auto load_weights = [&](int group, int chunk) {
    const int pair = pair_of(group);
    const Columns at(p, pair);
    const T *const first = p.weight + int64_t{at.first} * p.k, *const second = p.weight + int64_t{at.second} * p.k;
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int pack = (chunk + u * p.splits) * 32 + lane;
      weights[u][0] = weights[u][1] = {};
      if (simt::in_bounds(pack < packs && pair < p.pairs())) {
        weights[u][0] = Pack::load_once(first + pack * kWidth);
        if (at.second < p.n) weights[u][1] = Pack::load_once(second + pack * kWidth);
      }
    }
  };
  // Weights, bias and a norm's weights do not depend on the previous kernel, so they are loaded before the wait.
  simt::let_next_start();
  const int stride_of_groups = static_cast<int>(gridDim.x), first_group = static_cast<int>(blockIdx.x);
  load_weights(first_group, part);
  Ends ends;
  ends.load_bias(p, pair_of(first_group));
  if (kStaged && p.norm_weight)
    for (int pack = static_cast<int>(threadIdx.x); pack < packs; pack += kThreads) {
      norm_weight[pack] = Pack::load(p.norm_weight + pack * kWidth);
      if (p.centered) norm_bias[pack] = Pack::load(p.norm_bias + pack * kWidth);
    }
  simt::wait_for_inputs();

  const auto x_of = [&](int row, int pack) {
    Pack value = {};
    if (simt::in_bounds(row < p.rows && pack < packs)) value = Pack::load(p.x + int64_t{row} * p.k + pack * kWidth);
    return value;
  };
  if constexpr (kStaged) {
    // Until the barrier a thread touches only its own packs.
    const auto for_packs = [&](int end, auto work) {
      for (int pack = static_cast<int>(threadIdx.x); pack < end; pack += kThreads) work(pack);
    };
#pragma unroll
    for (int row = 0; row < kRows; ++row)
      for_packs(padded, [&](int pack) { x[row * padded + pack] = x_of(row, pack); });
    const float inverse = 1.0f / static_cast<float>(p.k);
    for (int row = 0; p.norm_weight && row < p.rows; ++row) {
      Pack* const of_row = x + row * padded;
      float mean = 0, squares = 0;
      if (p.centered) {
        for_packs(packs, [&](int pack) {
          const Pack value = of_row[pack];
#pragma unroll
          for (int i = 0; i < kWidth; ++i) mean += value.get(i);
        });
        mean = sum_over_block(mean, s.of_norm[0]) * inverse;
      }
      for_packs(packs, [&](int pack) {
        const Pack value = of_row[pack];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) squares += (value.get(i) - mean) * (value.get(i) - mean);
      });
      const float rstd = rsqrtf(sum_over_block(squares, s.of_norm[p.centered ? 1 : row % 2]) * inverse + p.epsilon);
      for_packs(packs, [&](int pack) {
        const Pack value = of_row[pack], weight = norm_weight[pack], offset = p.centered ? norm_bias[pack] : Pack{};
        float y[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) y[i] = (value.get(i) - mean) * rstd * weight.get(i) + offset.get(i);
        of_row[pack] = Pack::of(simt::packed<T>(y));
      });
    }
    __syncthreads();
  }

  int turn = 0;
  for (int group = first_group; group < groups; group += stride_of_groups) {
    ends.load_inputs(p, lane, pair_of(group));
    float sums[2][kRows] = {};
    const int stride = kAtOnce * p.splits;
    for (int chunk = part; chunk < chunks; chunk += stride) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int of_all = chunk + u * p.splits, pack = of_all * 32 + lane;
        if (of_all >= chunks) break;
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          const Pack value = kStaged ? x[row * padded + pack] : x_of(row, pack);
          float products[2] = {};
#pragma unroll
          for (int i = 0; i < kWidth; ++i)
#pragma unroll
            for (int c = 0; c < 2; ++c) products[c] = __fmaf_rn(value.get(i), weights[u][c].get(i), products[c]);
#pragma unroll
          for (int c = 0; c < 2; ++c) sums[c][row] += products[c];
        }
      }
      if (chunk + stride < chunks)
        load_weights(group, chunk + stride);
      else
        load_weights(group + stride_of_groups, part);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int row = 0; row < kRows; ++row) sums[c][row] = warp_sum(sums[c][row]);
    if (p.splits > 1) {
      if (lane == 0)
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int row = 0; row < kRows; ++row) s.sums[turn][warp][c][row] = sums[c][row];
      __syncthreads();
#pragma unroll
      for (int c = 0; c < 2; ++c)
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          if (part > 0) continue;
          for (int other = 1; other < p.splits; ++other) sums[c][row] += s.sums[turn][warp + other][c][row];
        }
      turn ^= 1;
    }
    float of_lane[2] = {};  // lane i finishes row i
#pragma unroll
    for (int row = 0; row < kRows; ++row)
      if (lane == row) of_lane[0] = sums[0][row], of_lane[1] = sums[1][row];
    if (part == 0 && lane < p.rows && pair_of(group) < p.pairs()) finish(p, lane, pair_of(group), of_lane, ends);
    ends = {};
    ends.load_bias(p, pair_of(group + stride_of_groups));
  }
}

template <class T, int kWidth, int kRows, bool kStaged>
void run(CudaDevice& device, const FewRows<T>& p) {
  const int pairs = (p.n + 1) / 2, of_block = kWarps / p.splits, groups = (pairs + of_block - 1) / of_block;
  const int blocks = std::min(groups, kBlocksOfSm * device.properties().multiprocessors);
  const size_t staged =
      kStaged ? few_rows_staged_bytes(kRows, p.k, sizeof(T) == 2 ? DType::bf16 : DType::fp32, p.norm_weight) : 0;
  const int row_groups = (p.rows + p.rows_of_group - 1) / p.rows_of_group;
  simt::launch_early(device.stream(), dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(row_groups)),
                     dim3(kThreads), sizeof(FewRowsShared<kRows>) + staged, few_rows_kernel<T, kWidth, kRows, kStaged>,
                     p);
}

template <class T, int kRows>
void run_rows(CudaDevice& device, const FewRows<T>& p) {
  const DType dtype = sizeof(T) == 2 ? DType::bf16 : DType::fp32;
  const bool packs = simt::packs(p.x, p.k) && simt::packs(p.weight, p.k);
  const bool norm_packs = !p.norm_weight || (simt::packs(p.norm_weight, p.k) && simt::packs(p.norm_bias, p.k));
  if (packs && norm_packs && few_rows_staged_bytes(kRows, p.k, dtype, p.norm_weight) <= kFewRowsStaged)
    return run<T, simt::kPack<T>, kRows, true>(device, p);
  if (p.norm_weight)
    fail("linear: x ", p.rows, " x ", p.k, " does not lie so that the product could begin with a norm");
  packs ? run<T, simt::kPack<T>, kRows, false>(device, p) : run<T, 1, kRows, false>(device, p);
}

template <class T>
void run_type(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const Shape& weight = call.in_shape(1);
  const int64_t rows = call.in_shape(0).rows();
  FewRows<T> p{.x = call.in<T>(linear_input::x),
               .weight = call.in<T>(linear_input::weight),
               .bias = call.in<T>(linear_input::bias),
               .addend = call.in<T>(linear_input::addend),
               .norm_weight = call.in<T>(linear_input::norm_weight),
               .norm_bias = call.in<T>(linear_input::norm_bias),
               .angles = call.in(linear_input::angles),
               .y = call.out<T>(0),
               .activated = call.out<T>(1),
               .n = static_cast<int>(weight[0]),
               .k = static_cast<int>(weight[1]),
               .rows = static_cast<int>(rows),
               .splits = few_rows_splits(weight[0], weight[1], call.in_dtype(0)),
               .centered = call.has_input(linear_input::norm_bias),
               .epsilon = static_cast<float>(a.number("epsilon", 0)),
               .activation = static_cast<ActivationKind>(a.integer("activation", 0)),
               .tokens = 1,
               .turned = 0,
               .half = 1,
               .rows_of_group = static_cast<int>(kFewRows)};
  if (a.flag("row_invariant")) p.rows_of_group = static_cast<int>(few_rows_group(p.k, call.in_dtype(0)));
  if (p.angles) {
    p.tokens = static_cast<int>(call.in_shape(linear_input::angles)[0]);
    p.turned = static_cast<int>(a.integer("heads") + a.integer("kv_heads"));
    p.half = static_cast<int>(a.integer("head_size") / 2);
  }
  switch (few_rows_rounded(std::min<int64_t>(rows, p.rows_of_group))) {
    case 1: return run_rows<T, 1>(*call.cuda, p);
    case 2: return run_rows<T, 2>(*call.cuda, p);
    case 4: return run_rows<T, 4>(*call.cuda, p);
    default: return run_rows<T, 8>(*call.cuda, p);
  }
}

}  // namespace

bool linear_few_rows(const KernelCall& call) {
  const int64_t rows = call.in_shape(0).rows();
  if (rows < 1 || (rows > kFewRows && !call.node.attributes.flag("row_invariant"))) return false;
  call.in_dtype(0) == DType::bf16 ? run_type<bf16>(call) : run_type<float>(call);
  return true;
}

}  // namespace llm::cuda
