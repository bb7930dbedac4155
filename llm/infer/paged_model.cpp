#include "llm/infer/paged_model.h"

#include <algorithm>

#include "llm/base/error.h"
#include "llm/base/rounding.h"
#include "llm/ops/attention_cuda.h"

namespace llm {
namespace {

// Products of 8 bits have scales of whole matrices, so what a row gets would depend on the others.
Target without_scales(Target target) {
  if (target.precision == Precision::fp8) target.precision = Precision::bf16;
  return target;
}

template <class Graphs>
std::shared_ptr<const Compiled> compile_within(const Graphs& g, const Target& target, size_t bytes) {
  auto compiled = std::make_shared<const Compiled>(compile(g.graph, g.results(), target));
  if (compiled->plan.bytes > bytes)
    fail("a program of the engine needs ", compiled->plan.bytes, " bytes, but ", bytes, " were planned");
  return compiled;
}

// Small data go along with the work that is handed over, without a wait.
void put(Device& device, void* to, const void* from, size_t bytes) {
  constexpr size_t kSmall = 256;
  bytes <= kSmall ? device.store(to, from, bytes) : device.copy_in(to, from, bytes);
}

}  // namespace

PagedModel::PagedModel(const ModelConfig& config, PersistentLayout layout, const Target& target, int64_t most_rows,
                       const PagedMemory& memory, int64_t known_tokens, std::function<void(Graph&)> divide)
    : config_(config),
      layout_(std::move(layout)),
      target_(without_scales(target)),
      dtype_(dtype_of(target_.precision)),
      most_rows_(most_rows),
      memory_(memory),
      known_tokens_(known_tokens),
      divide_(std::move(divide)),
      table_columns_(ceil_div(config.context, memory.block)) {
  const auto compiled = [&](int64_t rows) {
    const PagedGraph g = body_graph(rows);
    return compile(g.graph, g.results(), target_);
  };
  // The largest program needs the most memory, but for a kernel that takes few rows and needs a workspace for that.
  const Compiled largest = compiled(most_rows), few = compiled(std::min(most_rows, kPagedFewRows));
  layout_.add(largest.graph);
  table_ = layout_.offset("block_tables");
  body_base_ = placed_bytes(layout_.bytes());
  body_bytes_ = std::max(largest.plan.bytes, few.plan.bytes);
  head_base_ = placed_bytes(body_base_ + body_bytes_);
  const HeadGraph g = head_graph(std::min(most_rows, kMostHeadRows));
  head_bytes_ = compile(g.graph, g.results(), target_).plan.bytes;
}

void PagedModel::bind(const Arena& arena, Communicator* ranks) { arena_ = &arena, ranks_ = ranks; }

PagedGraph PagedModel::body_graph(int64_t rows) const {
  PagedGraph g = build_paged_graph(config_, rows, memory_, dtype_, false, target_.weights);
  if (divide_) divide_(g.graph);
  return g;
}

HeadGraph PagedModel::head_graph(int64_t rows) const {
  HeadGraph g = build_head_graph(config_, rows, dtype_, target_.cuda, known_tokens_, target_.weights);
  if (divide_) divide_(g.graph);
  return g;
}

int64_t PagedModel::rounded(int64_t rows) const {
  // A GPU captures each program, and reading the weights takes most of its time; a CPU's time goes with the rows.
  int64_t step = 1;
  if (target_.cuda)
    while (step < rows) step *= 2;
  else
    step = rows <= 16 ? 1 : rows <= 64 ? 4 : 16;
  return std::min(most_rows_, round_up(rows, step));
}

PagedModel::Body& PagedModel::body(int64_t rows) {
  auto& entry = bodies_[rows];
  if (!entry) {
    const PagedGraph g = body_graph(rows);
    entry.reset(new Body{g.rows, g.hidden, Program(compile_within(g, target_, body_bytes_), layout_, body_base_)});
    entry->program.bind(*arena_, ranks_);
  }
  return *entry;
}

PagedModel::Head& PagedModel::head(int64_t rows) {
  auto& entry = heads_[rows];
  if (!entry) {
    const HeadGraph g = head_graph(rows);
    entry.reset(new Head{g.hidden, g.logits, g.sampling, g.draws,
                         Program(compile_within(g, target_, head_bytes_), layout_, head_base_)});
    entry->program.bind(*arena_, ranks_);
  }
  return *entry;
}

void PagedModel::set_blocks(int64_t slot, int64_t first, std::span<const int32_t> blocks) {
  const size_t at = table_ + static_cast<size_t>(slot * table_columns_ + first) * sizeof(int32_t);
  put(arena_->device(), arena_->data() + at, blocks.data(), blocks.size_bytes());
}

void PagedModel::run(std::span<const TokenRow> rows) {
  const auto count = static_cast<int64_t>(rows.size()), size = rounded(count);
  last_ = &body(size);
  const bool with_far = config_.rope_kind == RopeKind::longrope;
  staged_.assign(static_cast<size_t>((with_far ? 4 : 3) * size), 0);
  std::fill_n(staged_.begin() + size, size, -1);  // rows that stand for no token
  for (int64_t i = 0; i < count; ++i) {
    const TokenRow& row = rows[static_cast<size_t>(i)];
    int32_t* const at = staged_.data() + i;
    at[0] = row.token, at[size] = row.position, at[2 * size] = row.slot;
    if (with_far) at[3 * size] = row.is_far;
  }
  put(arena_->device(), last_->program.data<std::byte>(last_->rows), staged_.data(), staged_.size() * sizeof(int32_t));
  last_->program.run(Phase::forward);
}

void PagedModel::run_head(std::span<const int32_t> numbers, std::span<const SampleRow> options) {
  Head& h = head(std::min(kMostHeadRows, rounded(static_cast<int64_t>(numbers.size()))));
  last_head_ = &h;
  const size_t row = static_cast<size_t>(config_.channels) * size_of(dtype_);
  const auto* from = last_->program.data<std::byte>(last_->hidden);
  auto* const to = h.program.data<std::byte>(h.hidden);
  for (size_t first = 0, end; first < numbers.size(); first = end) {  // rows that lie side by side at once
    for (end = first + 1; end < numbers.size() && numbers[end] == numbers[end - 1] + 1;) ++end;
    arena_->device().copy(to + first * row, from + static_cast<size_t>(numbers[first]) * row, (end - first) * row);
  }
  if (h.draws != kNone)
    put(arena_->device(), h.program.data<std::byte>(h.sampling), options.data(), options.size_bytes());
  h.program.run(Phase::forward);
}

const Draw* PagedModel::draws() {
  const Head& h = *last_head_;
  if (h.draws == kNone) return nullptr;
  draws_.resize(static_cast<size_t>(h.program.graph().shape(h.draws)[0]));
  h.program.read(h.draws, draws_.data());
  return draws_.data();
}

float* PagedModel::logits() {
  const Head& h = *last_head_;
  const Tensor& t = h.program.graph().tensor(h.logits);
  if (arena_->on_host() && t.dtype == DType::fp32) return h.program.data(h.logits);
  logits_.resize(static_cast<size_t>(t.shape.elements()));
  if (t.dtype == DType::fp32) {
    h.program.read(h.logits, logits_.data());
    return logits_.data();
  }
  fetched_.resize(t.bytes());
  h.program.read(h.logits, fetched_.data());
  const auto* const narrow = reinterpret_cast<const bf16*>(fetched_.data());
  std::transform(narrow, narrow + logits_.size(), logits_.begin(), [](bf16 x) { return to_float(x); });
  return logits_.data();
}

}  // namespace llm
