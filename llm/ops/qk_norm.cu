// qk_norm and its backward: RMSNorm of each query and key head over its D channels (formulas: qk_norm.cpp); the values
// are copied.
//
// A group of 1 to 32 neighbouring lanes holds a head, 16 bytes a lane. So a warp takes several heads of a row at once,
// and loads kAtOnce times as many before it works on them. The backward pass deals the rows out to at most
// kNormBlocksCuda blocks. A lane holds the sums for d_query_weight and d_key_weight of its channels in registers; at
// the end the block adds up those of its groups and warps, and sum_partials adds up the blocks'. Every byte is read and
// written once, the weights once for each row (forward) or block (backward); where the largest value is wanted, the
// gradients of values twice.
#include "llm/device/cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/norm_cuda.h"

namespace llm::cuda {
namespace {

template <class T>
struct QkNorm {
  const T* qkv;           // (rows, width)
  const T* query_weight;  // (D)
  const T* key_weight;    // (D)
  float* rstd;            // (rows, queries + keys)
  T* y;                   // (rows, width); may lie in place of qkv
  int64_t rows;
  int queries, keys, size;  // number of query heads and of key heads; channels of a head, D
  float epsilon;
  __device__ int normed() const { return queries + keys; }
  __device__ int64_t width() const { return int64_t{queries + 2 * keys} * size; }
};

template <class T>
struct QkNormBackward {
  const T* dy;            // (rows, width)
  const T* qkv;           // (rows, width)
  const T* query_weight;  // (D)
  const T* key_weight;    // (D)
  const float* rstd;      // (rows, queries + keys)
  T* dx;                  // (rows, width); may lie in place of dy
  float* partial;         // (blocks, 2, D)
  int64_t rows;
  int block_rows, queries, keys, size;
  uint32_t* largest;  // (1), of |dx|, or null
  __device__ int normed() const { return queries + keys; }
  __device__ int64_t width() const { return int64_t{queries + 2 * keys} * size; }
};

// Copies the values of a row by one warp, unless they are in place.
template <int kWidth, class T>
__device__ void copy_values(const T* from, T* to, int64_t channels) {
  using Pack = simt::Pack<T, kWidth>;
  if (from == to) return;
  for (int64_t c = threadIdx.x % 32 * kWidth; c < channels; c += 32 * kWidth)
    *reinterpret_cast<Pack*>(to + c) = *reinterpret_cast<const Pack*>(from + c);
}

// The largest absolute value of a row's values, by one warp; each lane returns that of the values it has read.
template <int kWidth, class T>
__device__ float most_of_values(const T* values, int64_t channels) {
  float most = 0;
  for (int64_t c = threadIdx.x % 32 * kWidth; c < channels; c += 32 * kWidth) {
    const auto pack = *reinterpret_cast<const simt::Pack<T, kWidth>*>(values + c);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) most = fmaxf(most, fabsf(pack.get(k)));
  }
  return most;
}

constexpr int kRowThreads = 256, kRowWarps = kRowThreads / 32;  // of a block of the forward pass; a warp takes a row

template <class T, int kAtOnce = 4>
__global__ void __launch_bounds__(kRowThreads) qk_norm_kernel(const __grid_constant__ QkNorm<T> call, int lanes) {
  constexpr int kPack = simt::kPack<T>;
  using Pack = simt::Pack<T>;
  const int64_t row = int64_t{blockIdx.x} * kRowWarps + threadIdx.x / 32;
  if (row >= call.rows) return;  // the same for all lanes of a warp
  const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / lanes, groups = 32 / lanes;
  const int pack = lane % lanes, packs = call.size / kPack;
  const bool has_pack = pack < packs;
  const float inverse = 1.0f / static_cast<float>(call.size);
  const Pack query_weight = reinterpret_cast<const Pack*>(call.query_weight)[min(pack, packs - 1)];
  const Pack key_weight = reinterpret_cast<const Pack*>(call.key_weight)[min(pack, packs - 1)];
  const auto* in = reinterpret_cast<const Pack*>(call.qkv + row * call.width());
  auto* out = reinterpret_cast<Pack*>(call.y + row * call.width());
  for (int first = 0; first < call.normed(); first += kAtOnce * groups) {
    Pack x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int head = first + i * groups + group;
      x[i] = {};
      if (simt::in_bounds(has_pack && head < call.normed())) x[i] = in[head * packs + pack];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int head = first + i * groups + group;
      float squares = 0;
#pragma unroll
      for (int k = 0; k < kPack; ++k) squares += x[i].get(k) * x[i].get(k);
      const float rstd = rsqrtf(warp_sum(squares, lanes) * inverse + call.epsilon);
      if (simt::in_bounds(has_pack && head < call.normed())) {
        const Pack weight = head < call.queries ? query_weight : key_weight;
        float y[kPack];
#pragma unroll
        for (int k = 0; k < kPack; ++k) y[k] = x[i].get(k) * rstd * weight.get(k);
        out[head * packs + pack] = simt::packed<T>(y);
        if (pack == 0) call.rstd[row * call.normed() + head] = rstd;
      }
    }
  }
  copy_values<kPack>(call.qkv + row * call.width() + int64_t{call.normed()} * call.size,
                     call.y + row * call.width() + int64_t{call.normed()} * call.size, int64_t{call.keys} * call.size);
}

// For any head size and alignment: a warp takes a row, one head after the other, and reads each head twice.
template <class T>
__global__ void __launch_bounds__(kRowThreads) qk_norm_any_kernel(const __grid_constant__ QkNorm<T> call) {
  const int64_t row = int64_t{blockIdx.x} * kRowWarps + threadIdx.x / 32;
  if (row >= call.rows) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int head = 0; head < call.normed(); ++head) {
    const int64_t at = row * call.width() + int64_t{head} * call.size;
    const T* weight = head < call.queries ? call.query_weight : call.key_weight;
    float squares = 0;
    for (int c = lane; c < call.size; c += 32) squares += to_float(call.qkv[at + c]) * to_float(call.qkv[at + c]);
    const float rstd = rsqrtf(warp_sum(squares) / static_cast<float>(call.size) + call.epsilon);
    for (int c = lane; c < call.size; c += 32)
      call.y[at + c] = simt::stored<T>(to_float(call.qkv[at + c]) * rstd * to_float(weight[c]));
    if (lane == 0) call.rstd[row * call.normed() + head] = rstd;
  }
  const int64_t values = row * call.width() + int64_t{call.normed()} * call.size;
  copy_values<1>(call.qkv + values, call.y + values, int64_t{call.keys} * call.size);
}

template <int kPack>
struct alignas(16) QkNormShared {
  float sums[kNormWarps][2][kStaged<kPack>];  // of each warp, for query_weight and for key_weight
};

template <class T, int kAtOnce = 2>
__global__ void __launch_bounds__(kNormThreads)
    qk_norm_backward_kernel(const __grid_constant__ QkNormBackward<T> call, int lanes) {
  constexpr int kPack = simt::kPack<T>;
  using Pack = simt::Pack<T>;
  auto& s = simt::shared_memory<QkNormShared<kPack>>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int group = lane / lanes, groups = 32 / lanes, pack = lane % lanes, packs = call.size / kPack;
  const bool has_pack = pack < packs;
  const float inverse = 1.0f / static_cast<float>(call.size);
  const Pack query_weight = reinterpret_cast<const Pack*>(call.query_weight)[min(pack, packs - 1)];
  const Pack key_weight = reinterpret_cast<const Pack*>(call.key_weight)[min(pack, packs - 1)];
  float d_query[kPack] = {}, d_key[kPack] = {};
  float most = 0;
  const int64_t begin = int64_t{blockIdx.x} * call.block_rows, end = min(begin + call.block_rows, call.rows);
  for (int64_t row = begin + warp; row < end; row += kNormWarps) {
    const auto* dy_row = reinterpret_cast<const Pack*>(call.dy + row * call.width());
    const auto* x_row = reinterpret_cast<const Pack*>(call.qkv + row * call.width());
    auto* dx_row = reinterpret_cast<Pack*>(call.dx + row * call.width());
    for (int first = 0; first < call.normed(); first += kAtOnce * groups) {
      Pack dy[kAtOnce], x[kAtOnce];
      float rstd[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int head = first + i * groups + group;
        dy[i] = x[i] = {};
        rstd[i] = 0;
        if (simt::in_bounds(has_pack && head < call.normed())) {
          dy[i] = dy_row[head * packs + pack];
          x[i] = x_row[head * packs + pack];
          rstd[i] = call.rstd[row * call.normed() + head];
        }
      }
      // dx = rstd (g - n mean(g n)) with g = dy weight and n = x rstd.
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int head = first + i * groups + group;
        const bool is_query = head < call.queries;
        const Pack weight = is_query ? query_weight : key_weight;
        float sum_gn = 0;
#pragma unroll
        for (int k = 0; k < kPack; ++k) {
          const float dn = dy[i].get(k) * x[i].get(k) * rstd[i];
          sum_gn += dn * weight.get(k);
          d_query[k] += is_query ? dn : 0;
          d_key[k] += is_query ? 0 : dn;
        }
        const float mean_gn = warp_sum(sum_gn, lanes) * inverse;
        if (simt::in_bounds(has_pack && head < call.normed())) {
          float dx[kPack];
#pragma unroll
          for (int k = 0; k < kPack; ++k)
            dx[k] = (dy[i].get(k) * weight.get(k) - x[i].get(k) * rstd[i] * mean_gn) * rstd[i];
#pragma unroll
          for (int k = 0; k < kPack; ++k) most = fmaxf(most, fabsf(dx[k]));
          dx_row[head * packs + pack] = simt::packed<T>(dx);
        }
      }
    }
    const int64_t values = row * call.width() + int64_t{call.normed()} * call.size;
    copy_values<kPack>(call.dy + values, call.dx + values, int64_t{call.keys} * call.size);
    if (call.largest) most = fmaxf(most, most_of_values<kPack>(call.dy + values, int64_t{call.keys} * call.size));
  }

  // Add up the sums of the groups of a warp, then those of the warps.
  for (int offset = lanes; offset < 32; offset *= 2)
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      d_query[k] += __shfl_xor_sync(simt::kWholeWarp, d_query[k], offset);
      d_key[k] += __shfl_xor_sync(simt::kWholeWarp, d_key[k], offset);
    }
  if (group == 0) {
    stage(s.sums[warp][0], pack, lanes, d_query);
    stage(s.sums[warp][1], pack, lanes, d_key);
  }
  __syncthreads();
  for (int item = static_cast<int>(threadIdx.x); item < 2 * call.size; item += kNormThreads) {
    const int which = item / call.size, c = item % call.size, at = staged(c / kPack, c % kPack, lanes);
    float sum = 0;
    for (int w = 0; w < kNormWarps; ++w) sum += s.sums[w][which][at];
    call.partial[int64_t{blockIdx.x} * 2 * call.size + item] = sum;
  }
  note_largest_over(to_float(simt::stored<T>(most)), call.largest, s);
}

// For any head size and alignment: warps take heads one after the other. The sums of a warp, (2, D), lie in shared
// memory; until the barrier only one lane touches the sums of a channel.
template <class T>
__global__ void __launch_bounds__(kNormThreads)
    qk_norm_backward_any_kernel(const __grid_constant__ QkNormBackward<T> call) {
  float* sums = &simt::shared_memory<float>();  // (warps, 2, D)
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, D = call.size;
  float* d_query = sums + warp * 2 * D;
  float* d_key = d_query + D;
  for (int c = lane; c < D; c += 32) d_query[c] = d_key[c] = 0;
  float most = 0;
  const int64_t begin = int64_t{blockIdx.x} * call.block_rows, end = min(begin + call.block_rows, call.rows);
  for (int64_t row = begin + warp; row < end; row += kNormWarps) {
    for (int head = 0; head < call.normed(); ++head) {
      const int64_t at = row * call.width() + int64_t{head} * D;
      const T* weight = head < call.queries ? call.query_weight : call.key_weight;
      float* d_weight = head < call.queries ? d_query : d_key;
      const float rstd = call.rstd[row * call.normed() + head];
      float sum_gn = 0;
#pragma unroll 1
      for (int c = lane; c < D; c += 32) {
        const float dn = to_float(call.dy[at + c]) * to_float(call.qkv[at + c]) * rstd;
        sum_gn += dn * to_float(weight[c]);
        d_weight[c] += dn;
      }
      const float mean_gn = warp_sum(sum_gn) / static_cast<float>(D);
#pragma unroll 1
      for (int c = lane; c < D; c += 32) {
        const float g = to_float(call.dy[at + c]) * to_float(weight[c]), n = to_float(call.qkv[at + c]) * rstd;
        const float dx = (g - n * mean_gn) * rstd;
        call.dx[at + c] = simt::stored<T>(dx);
        most = fmaxf(most, fabsf(dx));
      }
    }
    const int64_t values = row * call.width() + int64_t{call.normed()} * D;
    copy_values<1>(call.dy + values, call.dx + values, int64_t{call.keys} * D);
    if (call.largest) most = fmaxf(most, most_of_values<1>(call.dy + values, int64_t{call.keys} * D));
  }
  __syncthreads();
  for (int item = static_cast<int>(threadIdx.x); item < 2 * D; item += kNormThreads) {
    float sum = 0;
    for (int w = 0; w < kNormWarps; ++w) sum += sums[w * 2 * D + item];
    call.partial[int64_t{blockIdx.x} * 2 * D + item] = sum;
  }
  note_largest_over(to_float(simt::stored<T>(most)), call.largest, *sums);  // `sums` has at least 16 x 2 floats
}

// The number of lanes that hold a head, a power of two; 0 where a head does not fit into a warp or is not aligned.
template <class T, class... Rows>
int lanes_of_head(int64_t size, const Rows*... rows) {
  if (!(... && simt::packs<T>(rows, size))) return 0;
  const int64_t packs = size / simt::kPack<T>;
  for (int lanes = 1; lanes <= 32; lanes *= 2)
    if (packs <= lanes) return lanes;
  return 0;
}

template <class T>
void forward(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const QkNorm<T> qk{.qkv = call.in<T>(0),
                     .query_weight = call.in<T>(1),
                     .key_weight = call.in<T>(2),
                     .rstd = call.out(1),
                     .y = call.out<T>(0),
                     .rows = call.in_shape(0).rows(),
                     .queries = static_cast<int>(a.integer("heads")),
                     .keys = static_cast<int>(a.integer("kv_heads")),
                     .size = static_cast<int>(a.integer("head_size")),
                     .epsilon = static_cast<float>(a.number("epsilon"))};
  const dim3 blocks(static_cast<unsigned>((qk.rows + kRowWarps - 1) / kRowWarps));
  const int lanes = lanes_of_head<T>(qk.size, qk.qkv, qk.query_weight, qk.key_weight, qk.y);
  if (lanes > 0)
    simt::launch(call.cuda->stream(), blocks, dim3(kRowThreads), 0, qk_norm_kernel<T>, qk, lanes);
  else
    simt::launch(call.cuda->stream(), blocks, dim3(kRowThreads), 0, qk_norm_any_kernel<T>, qk);
}

template <class T>
void backward(const KernelCall& call) {
  const Attributes& a = call.node.attributes;
  const int64_t rows = call.in_shape(1).rows();
  const QkNormBackward<T> qk{.dy = call.in<T>(0),
                             .qkv = call.in<T>(1),
                             .query_weight = call.in<T>(2),
                             .key_weight = call.in<T>(3),
                             .rstd = call.in(4),
                             .dx = call.out<T>(0),
                             .partial = call.workspace(),
                             .rows = rows,
                             .block_rows = static_cast<int>(norm_block_rows_cuda(rows)),
                             .queries = static_cast<int>(a.integer("heads")),
                             .keys = static_cast<int>(a.integer("kv_heads")),
                             .size = static_cast<int>(a.integer("head_size")),
                             .largest = largest_of(call)};
  const dim3 blocks(static_cast<unsigned>(norm_blocks_cuda(rows)));
  const int lanes = lanes_of_head<T>(qk.size, qk.dy, qk.qkv, qk.query_weight, qk.key_weight, qk.dx);
  if (lanes > 0)
    simt::launch(call.cuda->stream(), blocks, dim3(kNormThreads), sizeof(QkNormShared<simt::kPack<T>>),
                 qk_norm_backward_kernel<T>, qk, lanes);
  else
    simt::launch(call.cuda->stream(), blocks, dim3(kNormThreads),
                 static_cast<size_t>(kNormWarps * 2 * qk.size) * sizeof(float), qk_norm_backward_any_kernel<T>, qk);
  sum_partials<2>(call.cuda->stream(), call.workspace(), norm_blocks_cuda(rows), qk.size,
                  {{call.out(1), call.out(2)}, {call.accumulates(1), call.accumulates(2)}});
}

}  // namespace

void qk_norm(const KernelCall& call) { call.in_dtype(0) == DType::bf16 ? forward<bf16>(call) : forward<float>(call); }
void qk_norm_backward(const KernelCall& call) {
  call.in_dtype(0) == DType::bf16 ? backward<bf16>(call) : backward<float>(call);
}

}  // namespace llm::cuda
