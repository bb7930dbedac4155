// attention_paged: attention of new tokens of many sequences to keys and values that lie in blocks (Kwon et al. 2023).
//   qkv (1, R, (H + 2 K) D) of R new tokens, key blocks and value blocks (N, K, P, D), positions (1, R) int32 of the
//   tokens in their sequences (below 0: a row that stands for no token, whose output is zero), slots (1, R) int32,
//   tables (S, M) int32 -> out (1, R, H D), key blocks, value blocks
// Attributes: heads H, kv_heads K, head_size D. Position p of the sequence in slot s lies in block tables(s, p / P) at
// p % P. First the keys and values of all new tokens are written, then each token attends to the positions of its
// sequence up to its own. No two rows have the same place. On the CPU the rows (D) of the blocks may be packed
// (llm/base/packed_rows.h): attention then has the bits of blocks in fp32 with what the rows stand for.
//
// What a token gets depends on its sequence and its position alone, bit by bit: its keys come in parts of kPartKeys,
// counted from key 0, each of which has its own softmax (Flash-Decoding, Dao et al. 2023), and the parts are added up in
// their order, on whatever thread each was computed.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "llm/base/packed_rows.h"
#include "llm/base/rounding.h"
#include "llm/base/simd.h"
#include "llm/device/packed_rows_cpu.h"
#include "llm/ops/attention_cuda.h"
#include "llm/ops/cuda_kernels.h"
#include "llm/ops/ops.h"

namespace llm {
namespace {

using simd::kLanes;
using simd::Vec;

constexpr int64_t kPartKeys = kPagedPartKeys;
constexpr int64_t kTileRows = 16;  // tokens that a thread takes at a time: those of one prompt read the same keys
constexpr int64_t kMostVectorSize = 512;  // D for which rows are widened by vectors
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

namespace input {
enum : size_t { qkv, keys, values, positions, slots, tables };
}

struct PagedShape {
  int64_t rows, heads, kv_heads, head_size;   // R, H, K, D
  int64_t blocks, block, sequences, columns;  // N, P, S, M

  PagedShape(const Graph& g, const Node& node)
      : heads(node.attributes.integer("heads")),
        kv_heads(node.attributes.integer("kv_heads")),
        head_size(node.attributes.integer("head_size")) {
    const Shape qkv = g.shape(node.inputs[input::qkv]), keys = g.shape(node.inputs[input::keys]),
                tables = g.shape(node.inputs[input::tables]);
    rows = qkv.rows();
    if (qkv.rank() != 3 || qkv[2] != width()) fail("attention_paged: qkv must be (1, R, ", width(), ")");
    if (keys.rank() != 4 || keys[1] != kv_heads || keys[3] != head_size || keys != g.shape(node.inputs[input::values]))
      fail("attention_paged: the blocks must be (N, K, P, D), not ", keys.text());
    blocks = keys[0], block = keys[2], sequences = tables[0], columns = tables.last();
    if (kPartKeys % block || block % kLanes)
      fail("attention_paged: a block of ", block, " positions is no part of ", kPartKeys);
    for (const size_t i : {input::positions, input::slots})
      if (g.shape(node.inputs[i]).elements() != rows)
        fail("attention_paged: positions and slots must have ", rows, " elements");
  }
  int64_t width() const { return (heads + 2 * kv_heads) * head_size; }
  int64_t group() const { return heads / kv_heads; }
  int64_t parts() const { return ceil_div(columns * block, kPartKeys); }
  int64_t stride() const { return head_size + 2; }  // floats of a Partial
};

// The softmax of a query over some keys: the largest score, the sum of exp(score - largest), and the values (D)
// weighted by these exponentials.
struct Partial {
  float* data;
  float& maximum() const { return data[0]; }
  float& sum() const { return data[1]; }
  float* values() const { return data + 2; }

  // Adds the softmax over the keys that follow. (Not inlined: the compiler might join a product with the addition in one
  // place, and the other one in another.)
  [[gnu::noinline]] void add(const Partial& next, int64_t size) const {
    const float top = std::max(maximum(), next.maximum());
    const float mine = std::exp(maximum() - top), its = std::exp(next.maximum() - top);
    maximum() = top;
    sum() = sum() * mine + next.sum() * its;
    for (int64_t c = 0; c < size; ++c) values()[c] = values()[c] * mine + next.values()[c] * its;
  }
};

// The floats of `count` packed rows (count, D).
template <class Reader>
void widen(const std::byte* rows, int64_t row_bytes, int64_t count, int64_t size, float* to) {
  constexpr int64_t kStep = Reader::kVectors * kLanes;
  float scales[packed_rows::room_for_scales(kMostVectorSize)];
  for (int64_t row = 0; row < count; ++row) {
    const Reader reader(rows + row * row_bytes, size, scales);
    for (int64_t s = 0; s < size / kStep; ++s) {
      const auto step = reader.step(s);
#pragma GCC unroll 8
      for (int v = 0; v < Reader::kVectors; ++v) simd::store(to + row * size + s * kStep + v * kLanes, step.vector(v));
    }
  }
}
void widen_rows(DType type, const std::byte* rows, int64_t row_bytes, int64_t count, int64_t size, float* to) {
  const int64_t step = std::max<int64_t>(2 * kLanes, kBlockValues);
  if (size % step == 0 && size <= kMostVectorSize && (type == DType::bf16 || type == DType::int8)) {
    if (type == DType::bf16) return widen<packed_rows::Bf16>(rows, row_bytes, count, size, to);
    return widen<packed_rows::Int8>(rows, row_bytes, count, size, to);
  }
  for (int64_t row = 0; row < count; ++row) unpack_row(type, rows + row * row_bytes, size, to + row * size);
}

struct Pages {
  const PagedShape& s;
  std::byte *keys, *values;
  DType type;
  int64_t row_bytes;
  const int32_t *positions, *slots, *tables;

  bool is_packed() const { return type != DType::fp32; }
  static const float* floats(const std::byte* at) { return reinterpret_cast<const float*>(at); }

  int64_t parts_of(int64_t row) const { return ceil_div(int64_t{positions[row]} + 1, kPartKeys); }
  // The byte of key_blocks and value_blocks at which the P rows of a key-value head begin.
  int64_t begin_of(int64_t row, int64_t column, int64_t kv_head) const {
    return (tables[slots[row] * s.columns + column] * s.kv_heads + kv_head) * s.block * row_bytes;
  }

  void append(const float* qkv, int64_t row) const {
    if (positions[row] < 0) return;
    const int64_t D = s.head_size, offset = positions[row] % s.block * row_bytes;
    const float* from = qkv + row * s.width() + s.heads * D;
    for (int64_t head = 0; head < s.kv_heads; ++head) {
      const int64_t to = begin_of(row, positions[row] / s.block, head) + offset;
      pack_row(type, from + head * D, D, keys + to);
      pack_row(type, from + (s.kv_heads + head) * D, D, values + to);
    }
  }

  // The scores of a whole block of keys (P, D). Those of positions that are not written yet are not meant to be used.
  void score_block(const float* query, const float* block_keys, float scale, float* scores) const {
    const int64_t size = s.head_size, whole = size / kLanes * kLanes;
    for (int64_t key = 0; key < s.block; key += kLanes) {
      const float* from = block_keys + key * size;
      Vec dots[kLanes] = {};
      for (int64_t c = 0; c < whole; c += kLanes) {
        const Vec q = simd::load(query + c);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) dots[i] += q * simd::load(from + i * size + c);
      }
      if (whole < size) {
        const Vec q = simd::load_part(query + whole, size - whole);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) dots[i] += q * simd::load_part(from + i * size + whole, size - whole);
      }
      simd::store(scores + key, simd::reduce_add(dots) * scale);
    }
  }

  // Floats of a part of values, behind the scores, and of a block of keys: none where they need not be widened.
  static int64_t wide_floats(const PagedShape& s, DType type) {
    return type == DType::fp32 ? 0 : (kPartKeys + s.block) * s.head_size;
  }

  // Keys [begin, end) of a token's sequence. `scores`: room for kPartKeys and wide_floats(). `far`: the blocks are likely not
  // in a cache.
  [[gnu::noinline]] void attend(const float* query, int64_t row, int64_t kv_head, int64_t begin, int64_t end, bool far,
                                float* scores, Partial out) const {
    const int64_t size = s.head_size, first = begin / s.block, last = (end - 1) / s.block;
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    float *const wide_values = scores + kPartKeys, *const wide_keys = wide_values + kPartKeys * size;
    for (int64_t column = first; column <= last; ++column) {
      const int64_t at = begin_of(row, column, kv_head);
      if (far) {
        const std::byte* next = keys + begin_of(row, std::min(column + 1, last), kv_head);
        for (int64_t i = 0; i < s.block * row_bytes; i += 64) {
          __builtin_prefetch(next + i);
          __builtin_prefetch(values + at + i);
        }
      }
      if (is_packed()) widen_rows(type, keys + at, row_bytes, s.block, size, wide_keys);
      score_block(query, is_packed() ? wide_keys : floats(keys + at), scale, scores + (column - first) * s.block);
    }
    if (is_packed())
      for (int64_t column = first; column <= last; ++column)
        widen_rows(type, values + begin_of(row, column, kv_head), row_bytes, std::min(s.block, end - column * s.block),
                   size, wide_values + (column - first) * s.block * size);
    const int64_t count = end - begin, filled = round_up(count, kLanes);
    for (int64_t i = count; i < filled; ++i) scores[i] = kMinusInfinity;
    Vec top = simd::broadcast(kMinusInfinity), sum{};
    for (int64_t i = 0; i < filled; i += kLanes) top = simd::max(top, simd::load(scores + i));
    out.maximum() = simd::reduce_max(top);
    for (int64_t i = 0; i < filled; i += kLanes) {
      const Vec probability = simd::exp(simd::load(scores + i) - simd::broadcast(out.maximum()));
      simd::store(scores + i, probability);
      sum += probability;
    }
    out.sum() = simd::reduce_add(sum);
    int64_t c = 0;
    for (; c + 4 * kLanes <= size; c += 4 * kLanes)
      add_values<4>(row, kv_head, first, count, c, 4 * kLanes, scores, out);
    for (; c < size; c += kLanes)
      add_values<1>(row, kv_head, first, count, c, std::min<int64_t>(kLanes, size - c), scores, out);
  }

  // Channels [c, c + lanes), which take `Vectors` vectors.
  template <int Vectors>
  void add_values(int64_t row, int64_t kv_head, int64_t first, int64_t count, int64_t c, int64_t lanes,
                  const float* scores, Partial out) const {
    Vec total[Vectors] = {};
    for (int64_t key = 0; key < count; key += s.block) {
      const float* from = is_packed() ? scores + kPartKeys + key * s.head_size + c
                                      : floats(values + begin_of(row, first + key / s.block, kv_head)) + c;
      const int64_t end = std::min(s.block, count - key);
      for (int64_t i = 0; i < end; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) {
          const float* at = from + i * s.head_size + j * kLanes;
          total[j] += simd::broadcast(scores[key + i]) *
                      (Vectors > 1 || lanes == kLanes ? simd::load(at) : simd::load_part(at, lanes));
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j)
      if (Vectors > 1 || lanes == kLanes)
        simd::store(out.values() + c + j * kLanes, total[j]);
      else
        simd::store_part(out.values() + c, total[j], lanes);
  }

  void finish(const Partial& all, float* out) const {
    for (int64_t c = 0; c < s.head_size; ++c) out[c] = all.values()[c] / all.sum();
  }
};

// Few tokens: the parts of all tokens and heads are dealt out, then added up. parts (R, H, parts, D + 2).
void attend_by_parts(ThreadTeam& threads, const Pages& p, const float* qkv, float* out, float* workspace) {
  const PagedShape& s = p.s;
  const int64_t of_thread = kPartKeys + Pages::wide_floats(s, p.type);
  float *scores = workspace, *parts = scores + threads.size() * of_thread;
  const auto part = [&](int64_t row, int64_t head, int64_t i) {
    return Partial{parts + ((row * s.heads + head) * s.parts() + i) * s.stride()};
  };
  int64_t most = 1;
  for (int64_t row = 0; row < s.rows; ++row) most = std::max(most, p.parts_of(row));
  threads.for_items(s.rows * s.kv_heads * most, [&](int64_t item, int rank) {
    const int64_t i = item % most, kv_head = item / most % s.kv_heads, row = item / most / s.kv_heads;
    if (i >= p.parts_of(row)) return;
    for (int64_t head = kv_head * s.group(); head < (kv_head + 1) * s.group(); ++head)
      p.attend(qkv + row * s.width() + head * s.head_size, row, kv_head, i * kPartKeys,
               std::min<int64_t>(p.positions[row] + 1, (i + 1) * kPartKeys), true, scores + rank * of_thread,
               part(row, head, i));
  });
  threads.for_blocks(s.rows * s.heads, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / s.heads, head = i % s.heads;
      if (p.positions[row] < 0) continue;
      const Partial all = part(row, head, 0);
      for (int64_t next = 1; next < p.parts_of(row); ++next) all.add(part(row, head, next), s.head_size);
      p.finish(all, out + i * s.head_size);
    }
  });
}

// Many tokens: a thread takes a tile of rows and a key-value head, goes through the parts, and adds each up at once.
void attend_by_rows(ThreadTeam& threads, const Pages& p, const float* qkv, float* out, float* workspace) {
  const PagedShape& s = p.s;
  const int64_t for_part = kPartKeys + Pages::wide_floats(s, p.type),
                of_thread = for_part + (kTileRows * s.group() + 1) * s.stride();
  threads.for_items(ceil_div(s.rows, kTileRows) * s.kv_heads, [&](int64_t item, int rank) {
    const int64_t kv_head = item % s.kv_heads, first = item / s.kv_heads * kTileRows;
    const int64_t end = std::min(s.rows, first + kTileRows);
    float *scores = workspace + rank * of_thread, *states = scores + for_part;
    const Partial next{states + kTileRows * s.group() * s.stride()};
    int64_t most = 0;
    for (int64_t row = first; row < end; ++row) most = std::max(most, p.parts_of(row));
    for (int64_t i = 0; i < most; ++i)
      for (int64_t row = first; row < end; ++row) {
        if (i >= p.parts_of(row)) continue;
        const bool far = row == first || p.slots[row] != p.slots[row - 1];
        for (int64_t h = 0; h < s.group(); ++h) {
          const Partial state{states + ((row - first) * s.group() + h) * s.stride()};
          p.attend(qkv + row * s.width() + (kv_head * s.group() + h) * s.head_size, row, kv_head, i * kPartKeys,
                   std::min<int64_t>(p.positions[row] + 1, (i + 1) * kPartKeys), far && h == 0, scores,
                   i == 0 ? state : next);
          if (i > 0) state.add(next, s.head_size);
        }
      }
    for (int64_t row = first; row < end; ++row)
      for (int64_t h = 0; h < s.group() && p.positions[row] >= 0; ++h)
        p.finish({states + ((row - first) * s.group() + h) * s.stride()},
                 out + (row * s.heads + kv_head * s.group() + h) * s.head_size);
  });
}

void cpu(const KernelCall& call) {
  const PagedShape s(call.graph, call.node);
  const float* qkv = call.in(input::qkv);
  float* out = call.out(0);
  const Pages p{s,
                call.out<std::byte>(1),
                call.out<std::byte>(2),
                call.in_dtype(input::keys),
                packed_row_bytes(call.in_dtype(input::keys), s.head_size),
                call.in_int(input::positions),
                call.in_int(input::slots),
                call.in_int(input::tables)};
  call.threads.for_blocks(s.rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      p.append(qkv, row);
      if (p.positions[row] < 0) std::fill_n(out + row * s.heads * s.head_size, s.heads * s.head_size, 0.0f);
    }
  });
  (s.rows <= kPagedFewRows ? attend_by_parts : attend_by_rows)(call.threads, p, qkv, out, call.workspace());
}

void infer(Graph& g, Node& node) {
  const PagedShape s(g, node);
  g.add_output(node, "", g.dtype(node.inputs[input::qkv]), {1, s.rows, s.heads * s.head_size});
  for (const size_t i : {input::keys, input::values}) {
    const TensorId blocks = node.inputs[i];
    const TensorId updated = g.add_output(node, i == input::keys ? "keys" : "values", g.dtype(blocks), g.shape(blocks));
    g.tensor(updated).alias = blocks;
    g.tensor(updated).role = Role::state;
  }
}

size_t workspace(const Graph& g, const Node& node, const Target& target) {
  const PagedShape s(g, node);
  if (target.cuda) return attention_paged_workspace_cuda(s.rows, s.heads, s.head_size, s.columns * s.block);
  const int64_t for_part = kPartKeys + Pages::wide_floats(s, g.dtype(node.inputs[input::keys]));
  const int64_t by_parts = target.threads * for_part + s.rows * s.heads * s.parts() * s.stride(),
                by_rows = target.threads * (for_part + (kTileRows * s.group() + 1) * s.stride());
  return static_cast<size_t>(s.rows <= kPagedFewRows ? by_parts : by_rows) * sizeof(float);
}

// The cost with full tables, of which each sequence is read once.
Cost cost(const Graph& g, const Node& node) {
  const PagedShape s(g, node);
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  const auto bytes = [&](TensorId id) { return static_cast<double>(g.tensor(id).bytes()); };
  // A key and a value of all heads.
  const double row = number(2 * s.kv_heads * packed_row_bytes(g.dtype(node.inputs[input::keys]), s.head_size));
  Cost c;
  c.flops = number(4 * s.rows * s.heads * s.head_size) * number(s.columns * s.block);
  c.bytes_read = bytes(node.inputs[input::qkv]) + row * number(std::min(s.rows, s.sequences) * s.columns * s.block);
  c.bytes_written = bytes(node.outputs[0]) + row * number(s.rows);
  return c;
}

// Rows of several sequences, two of them with several tokens, in blocks of any order; one row stands for no token.
std::vector<Example> examples() {
  const auto example = [](int64_t H, int64_t K, int64_t D, std::vector<double> positions, std::vector<double> slots,
                          int64_t columns) -> Example {
    const auto R = static_cast<int64_t>(positions.size());
    const int64_t S = 1 + static_cast<int64_t>(*std::max_element(slots.begin(), slots.end())), N = S * columns + 1;
    std::vector<double> tables;
    for (int64_t i = 0; i < S * columns; ++i) tables.push_back(static_cast<double>(i * 7 % (S * columns)));
    const Example::Input blocks{.shape = {N, K, 16, D}, .role = Role::state, .differentiable = false};
    const auto ids = [](Shape shape, std::vector<double> values) {
      return Example::Input{
          .shape = shape, .dtype = DType::int32, .differentiable = false, .values = std::move(values)};
    };
    return {{{"heads", H}, {"kv_heads", K}, {"head_size", D}},
            {{.shape = {1, R, (H + 2 * K) * D}, .low = -2, .high = 2, .differentiable = false},
             blocks,
             blocks,
             ids({1, R}, std::move(positions)),
             ids({1, R}, std::move(slots)),
             ids({S, columns}, std::move(tables))}};
  };
  std::vector<double> many, of_one;  // the end of a prompt, across the border of two parts, beside single tokens
  for (int i = 0; i < 18; ++i) many.push_back(i < 2 ? 40 * i + 3 : 244 + i), of_one.push_back(i < 2 ? i : 2);
  return {example(2, 2, 8, {20}, {0}, 2), example(4, 2, 6, {0, 33, 5, 6, -1}, {1, 0, 2, 2, 0}, 3),
          example(2, 1, 20, many, of_one, 18)};
}

}  // namespace

std::vector<Op> attention_paged_ops() {
  return {{.name = "attention_paged",
           .summary = "attention of new tokens of many sequences to keys and values in blocks",
           .infer = infer,
           .cost = cost,
           .cpu = cpu,
           .cuda = cuda::attention_paged,
           .workspace = workspace,
           .examples = examples}};
}

}  // namespace llm
