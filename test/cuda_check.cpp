#include "test/cuda_check.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "llm/graph/autodiff.h"
#include "llm/graph/passes.h"

namespace llm::reference {
namespace {

// Bounds in fp32. The largest errors measured: outputs 7e-7, gradients 1.1e-6, but 5.2e-6 where 50257 terms are summed
// one by one.
constexpr double kBound = 1e-5, kAccumulationBound = 1e-6;
// On a GPU cuBLASLt may make a product that adds to its result by another algorithm than one that does not, and tensor
// cores add products of 8-bit numbers with about 14 bits (DeepSeek-AI 2024, "DeepSeek-V3 technical report", 3.3.2):
// 4.9e-5 was measured on an H100.
constexpr double kFp8BoundOnGpu = 0x1p-13;
bool on_gpu() { return CudaDevice::captures(); }
double accumulation_bound() { return on_gpu() ? kBound : kAccumulationBound; }

constexpr size_t kLargest = 3 << 20;  // bytes of a subject that is run more than once

// The largest relative error of rounding to the nearest value; 0 for fp32.
double rounding_error(DType dtype) {
  switch (dtype) {
    case DType::bf16: return 0x1p-9;
    case DType::e4m3: return 0x1p-4;
    case DType::e5m2: return 0x1p-3;
    default: return 0;
  }
}

// The ids in `to` of the tensors of `from`: two builds of a subject differ in workspaces, and so in ids.
std::map<TensorId, TensorId> correspondence(const Graph& from, const Graph& to) {
  std::map<TensorId, TensorId> ids;
  for (size_t n = 0; n < from.nodes.size(); ++n) {
    const Node &a = from.nodes[n], &b = to.nodes.at(n);
    for (size_t i = 0; i < a.inputs.size(); ++i) ids[a.inputs[i]] = b.input(i);
    for (size_t i = 0; i < a.outputs.size(); ++i) ids[a.outputs[i]] = b.output(i);
  }
  return ids;
}

// The outputs of the head, as computed by the three ops that it stands for: its CUDA kernels round the logits to the
// run's precision, as these ops do, while its CPU kernel never rounds them.
std::vector<std::vector<double>> plain_head(const Subject& head, const Attributes& attributes, DType precision) {
  const bool gradients = head.inputs.size() > 3;
  Built b;
  Graph& g = b.whole;
  for (size_t i = 0; i < head.inputs.size(); ++i) {
    const DType dtype = i < 2 ? precision : head.inputs[i].dtype;
    b.inputs.push_back(
        g.add_tensor(concat("input", i), dtype, head.inputs[i].shape, i == 1 ? Role::parameter : Role::activation));
  }
  const TensorId logits = g.add("linear", {}, {b.inputs[0], b.inputs[1]}, "logits")[0];
  std::vector<TensorId> results = {g.add("cross_entropy", attributes, {logits, b.inputs[2]}, "losses")[0]};
  if (gradients) {
    const Gradients all = differentiate(g, {{results[0], b.inputs[3]}}, {b.inputs[0], b.inputs[1]});
    for (size_t i : {0u, 1u}) results.push_back(all.of(b.inputs[i]));
  }
  cast_for_cpu(g);
  add_workspaces(g, {});
  Sandbox sandbox(g);
  fill(sandbox, head, b, precision);
  ThreadTeam team(1);
  sandbox.run(team, {});
  std::vector<std::vector<double>> values;
  for (TensorId id : results) values.push_back(sandbox.values(id));
  return values;
}

std::string text_of(DType precision) { return precision == DType::bf16 ? " in bf16" : " in fp32"; }

}  // namespace

CudaCheck::CudaCheck(const Subject& subject, DType precision, const StepState& step)
    : subject_(subject), precision_(precision), step_(step), name_(subject.name + text_of(precision)) {
  built_ = build(subject, {.dtype = precision, .cuda = true});
  for (const Tensor& t : built_.whole.tensors) memory_ += t.bytes();
  for (const Node& node : built_.whole.nodes) {
    ops_.insert(node.op->name);
    if (!node.op->cuda) missing_.insert(node.op->name);
  }
  if (!missing_.empty()) return;

  // What the outputs and gradients should be, and what a plain computation in bf16 makes of them.
  const Built unfused = build(subject, {.dtype = precision, .cuda = true, .fuse = false});
  const Built exact = build(subject, {.fuse = false, .casts = false}),
              plain = build(subject, {.dtype = precision, .fuse = false, .casts = false});
  const std::vector<Array> outputs = evaluate(subject, exact, step, precision);
  ThreadTeam team(1);
  Graph exact_graph = exact.whole, plain_graph = plain.whole;
  for (Graph* g : {&exact_graph, &plain_graph}) {
    cast_for_cpu(*g);  // some examples have bf16 tensors even in an fp32 run
    add_workspaces(*g, {});
  }
  Sandbox exact_sandbox(exact_graph), plain_sandbox(plain_graph);
  fill(exact_sandbox, subject, exact, precision);
  fill(plain_sandbox, subject, plain, precision);
  exact_sandbox.run(team, step);
  plain_sandbox.run(team, step);

  const std::vector<std::vector<double>> head =
      ops_ == std::set<std::string>{"head_loss"} ? plain_head(subject, built_.whole.nodes.front().attributes, precision)
                                                 : std::vector<std::vector<double>>{};
  const std::map<TensorId, TensorId> to_exact = correspondence(unfused.whole, exact.whole),
                                     to_plain = correspondence(unfused.whole, plain.whole);
  const auto expect = [&](TensorId id, bool gradient) {
    const auto in_exact = to_exact.find(id);
    if (in_exact == to_exact.end()) return;
    const TensorId other = in_exact->second;
    Expected e{id, built_.whole.tensor(id).name, {}, kBound, gradient};
    e.values = gradient ? exact_sandbox.values(other) : outputs.at(static_cast<size_t>(other)).values;
    const double rounding = rounding_error(built_.whole.dtype(id));
    if (precision == DType::bf16) {
      const bool is_head = !head.empty();
      const std::vector<double> of_plain = is_head ? head.at(expected_.size()) : plain_sandbox.values(to_plain.at(id));
      const double error = relative_error(of_plain, e.values);
      const bool three = gradient || (is_head && !expected_.empty());
      e.allowed = std::max({e.allowed, (three ? 3 : 2) * error, 2 * rounding});
    } else {
      e.allowed = std::max(e.allowed, 4 * rounding);  // AdamW rounds a parameter up or down by chance
    }
    expected_.push_back(std::move(e));
  };
  // Fusion leaves out tensors that are not results, and adds some.
  std::set<TensorId> gradients;
  for (auto& [input, gradient] : built_.gradients) gradients.insert(gradient);
  for (const Node& node : built_.whole.nodes)
    for (TensorId id : node.outputs) {
      if (id == kNone) continue;
      if (gradients.contains(id))
        expect(id, true);
      else if (static_cast<size_t>(id) < built_.forward.tensors.size())
        expect(id, false);
    }
}

std::string CudaCheck::check_values(const Sandbox& sandbox, CudaErrors* errors) const {
  std::string wrong;
  for (const Expected& e : expected_) {
    const double error = relative_error(sandbox.values(e.id), e.values);
    const double allowed = on_gpu() && ops_.contains("product_fp8") ? std::max(e.allowed, kFp8BoundOnGpu) : e.allowed;
    if (!(error <= allowed)) wrong += concat(name_, ": ", e.name, ": error ", error, ", allowed ", allowed, "\n");
    if (!errors) continue;
    const bool bf16 = precision_ == DType::bf16;
    const double share = bf16 ? error / e.allowed : error;
    double& worst = errors->worst[bf16][e.gradient];
    if (share > worst && (bf16 || e.allowed <= kBound))
      worst = share, errors->where[bf16][e.gradient] = name_ + ": " + e.name;
  }
  return wrong;
}

// Runs each node again by itself, in each way in which its op may work in place.
std::string CudaCheck::check_in_place(const Sandbox& done, CudaDevice& device) const {
  const Graph& g = built_.whole;
  Sandbox start(g);
  fill(start, subject_, built_, precision_);
  std::set<TensorId> written;
  for (const Node& node : g.nodes) written.insert(node.outputs.begin(), node.outputs.end());
  std::string wrong;
  for (size_t n = 0; n < g.nodes.size(); ++n) {
    const Node& node = g.nodes[n];
    for (const InPlace& pair : node.op->in_place) {
      const TensorId out = node.output(static_cast<size_t>(pair.output)),
                     in = node.input(static_cast<size_t>(pair.input));
      if (out == kNone || in == kNone || g.tensor(out).alias != kNone) continue;
      if (g.tensor(out).bytes() != g.tensor(in).bytes()) continue;  // the two have other types in this precision
      Sandbox sandbox(g, out, in);
      for (TensorId id : node.inputs)
        if (id != kNone) sandbox.copy(id, written.contains(id) ? done : start);
      sandbox.run_node(n, device, step_);
      const std::string where =
          concat(name_, ": ", node.op->name, " with output ", pair.output, " over input ", pair.input, ": ");
      for (TensorId id : node.outputs)
        if (id != kNone && !sandbox.same_bits(id, done)) wrong += where + g.tensor(id).name + " differs\n";
      if (const std::string damage = sandbox.damage(); !damage.empty()) wrong += where + damage + " was changed\n";
    }
  }
  return wrong;
}

// A second micro-step of the same batch doubles the gradients of parameters.
std::string CudaCheck::check_accumulation(Sandbox& sandbox, CudaDevice& device) const {
  const Graph& g = built_.whole;
  std::map<TensorId, std::vector<double>> twice;
  for (const Node& node : g.nodes)
    for (TensorId id : node.outputs)
      if (id != kNone && g.tensor(id).role == Role::accumulator) twice[id] = sandbox.values(id);
  if (twice.empty()) return "";
  StepState second = step_;
  second.micro_step = 1;
  sandbox.run(device, second, Sandbox::Place::together);
  std::string wrong;
  for (auto& [id, values] : twice) {
    for (double& v : values) v *= 2;
    const double error = relative_error(sandbox.values(id), values);
    if (!(error <= accumulation_bound()))
      wrong += concat(name_, ": ", g.tensor(id).name, " accumulated: error ", error, "\n");
  }
  if (const std::string damage = sandbox.damage(); !damage.empty()) wrong += name_ + ": " + damage + " was changed\n";
  return wrong;
}

std::string CudaCheck::run(CudaDevice& device, bool thorough, CudaErrors* errors) const {
  const Graph& g = built_.whole;
  Sandbox apart(g);
  fill(apart, subject_, built_, precision_);
  apart.run(device, step_, Sandbox::Place::apart);
  std::string wrong = check_values(apart, errors);
  if (const std::string damage = apart.damage(); !damage.empty()) wrong += name_ + ": " + damage + " was changed\n";
  if (!thorough || !wrong.empty() || memory_ > kLargest) return wrong;
  Sandbox sandbox(g);
  fill(sandbox, subject_, built_, precision_);
  sandbox.run(device, step_, Sandbox::Place::together);
  for (size_t i = 0; i < g.tensors.size(); ++i)
    if (g.tensors[i].role != Role::workspace && !sandbox.same_bits(static_cast<TensorId>(i), apart))
      wrong += concat(name_, ": ", g.tensors[i].name, " has other bits in another run\n");
  if (const std::string damage = sandbox.damage(); !damage.empty()) wrong += name_ + ": " + damage + " was changed\n";
  wrong += check_in_place(sandbox, device);
  return wrong + check_accumulation(sandbox, device);  // last, since it changes the results
}

namespace {

// Products of few rows, with the neighbours that are fused into them: m rows, k columns.
std::vector<Subject> few_rows_subjects() {
  using Ids = std::vector<TensorId>;
  std::vector<Subject> subjects;
  const auto input = [](Shape shape, double low = -1, double high = 1) {
    return Example::Input{.shape = shape, .low = low, .high = high, .role = Role::parameter};
  };
  const auto add = [&](const std::string& what, int64_t m, int64_t k, std::vector<Example::Input> more,
                       std::function<void(Graph&, const Ids&)> build) {
    std::vector<Example::Input> inputs = {{.shape = {1, m, k}, .low = -2, .high = 2}};
    inputs.insert(inputs.end(), more.begin(), more.end());
    subjects.push_back({concat(what, ", ", m, " x ", k), std::move(inputs), std::move(build), true, true});
  };
  // These sizes have packs of 16 bytes and none, numbers of rows that no kernel is for, sums that a block shares, and
  // blocks that go on to further columns.
  for (const auto& [m, k] : std::initializer_list<std::pair<int64_t, int64_t>>{{1, 768}, {3, 64}, {8, 304}, {5, 37}}) {
    add("layernorm + linear + gelu", m, k, {input({k}, 0.5, 1.5), input({k}), input({51, k}), input({51})},
        [](Graph& g, const Ids& in) {
          const TensorId y = g.add("layernorm", {{"epsilon", 1e-5}}, {in[0], in[1], in[2]}, "normal")[0];
          g.add("gelu", {}, {g.add("linear", {}, {y, in[3], in[4]}, "hidden")[0]}, "activated");
        });
    add("rmsnorm + linear + swiglu", m, k, {input({k}, 0.5, 1.5), input({46, k})}, [](Graph& g, const Ids& in) {
      const TensorId y = g.add("rmsnorm", {{"epsilon", 1e-5}}, {in[0], in[1]}, "normal")[0];
      g.add("swiglu", {}, {g.add("linear", {}, {y, in[2]}, "hidden")[0]}, "activated");
    });
    add("linear + residual", m, k, {input({301, k}), input({301}), input({1, m, 301})}, [](Graph& g, const Ids& in) {
      g.add("add", {}, {in[3], g.add("linear", {}, {in[0], in[1], in[2]}, "y")[0]}, "sum");
    });
    add("linear + rope", m, k,
        {input({(3 + 2 * 1) * 6, k}), {.shape = {m, 6}, .differentiable = false, .keeps_fp32 = true}},
        [](Graph& g, const Ids& in) {
          g.add("rope", {{"heads", int64_t{3}}, {"kv_heads", int64_t{1}}, {"head_size", int64_t{6}}},
                {g.add("linear", {}, {in[0], in[1]}, "qkv")[0], in[2]}, "turned");
        });
  }
  add("linear", 2, 4100, {input({9, 4100})}, [](Graph& g, const Ids& in) { g.add("linear", {}, {in[0], in[1]}, "y"); });
  add("linear, not in shared memory", 8, 3200, {input({21, 3200}), input({21})}, [](Graph& g, const Ids& in) {
    g.add("linear", {}, {in[0], in[1], in[2]}, "y");
  });
  return subjects;
}

}  // namespace

std::vector<Subject> cuda_subjects() {
  std::vector<Subject> subjects;
  const auto add = [&](const char* op, Attributes attributes, std::vector<Example::Input> inputs,
                       const std::string& what) {
    Subject s = subject_of(*op_named(op), {std::move(attributes), std::move(inputs)}, 0);
    s.name = op + (" " + what);
    subjects.push_back(std::move(s));
  };
  const auto parameter = [](Shape shape, double low = -1, double high = 1) {
    return Example::Input{.shape = shape, .low = low, .high = high, .role = Role::parameter};
  };
  const auto ids = [](Shape shape, int64_t low, int64_t high) {
    return Example::Input{
        .shape = shape, .dtype = DType::int32, .low = static_cast<double>(low), .high = static_cast<double>(high)};
  };

  // Rows that a warp or a block holds in registers, in packs or value by value.
  for (const auto& [rows, C] : std::initializer_list<std::pair<int64_t, int64_t>>{
           {9, 768}, {70, 64}, {3, 1000}, {140, 37}, {3, 1601}, {2, 5120}, {2, 9001}})
    for (const bool delta : {false, true})
      for (const char* norm : {"layernorm", "rmsnorm"}) {
        if (rows == 140 && delta == (*norm == 'l')) continue;  // it takes long
        std::vector<Example::Input> in = {{{1, rows, C}, DType::fp32, -2, 2}, parameter({C}, 0.5, 1.5)};
        if (norm == std::string("layernorm")) in.push_back(parameter({C}));
        if (delta) in.push_back({{1, rows, C}});
        add(norm, {{"epsilon", 1e-5}}, in, concat(rows, " x ", C, delta ? ", residual" : ""));
      }

  struct Heads {
    int64_t H, K, D, T;
  };
  const auto heads = [&](const Heads& h) -> Attributes {
    return {{"heads", h.H}, {"kv_heads", h.K}, {"head_size", h.D}};
  };
  const auto named = [](const Heads& h) { return concat(h.H, ":", h.K, " heads of ", h.D, ", ", h.T, " tokens"); };
  for (const Heads& h : {Heads{3, 1, 64, 33}, {2, 2, 128, 9}, {2, 1, 256, 5}}) {
    const Shape qkv{2, h.T, (h.H + 2 * h.K) * h.D};
    Attributes a = heads(h);
    a.set("epsilon", 1e-6);
    add("qk_norm", a, {{qkv, DType::fp32, -2, 2}, parameter({h.D}, 0.5, 1.5), parameter({h.D}, 0.5, 1.5)}, named(h));
    add("rope", heads(h), {{qkv}, {.shape = {h.T, h.D}, .differentiable = false, .keeps_fp32 = true}}, named(h));
  }
  for (const Heads& h : {Heads{2, 2, 64, 1},
                         {2, 2, 64, 63},
                         {1, 1, 64, 64},
                         {2, 1, 64, 65},
                         {3, 1, 64, 130},
                         {4, 2, 64, 70},
                         {1, 1, 64, 200},
                         {2, 2, 128, 63},
                         {1, 1, 128, 65},
                         {2, 1, 128, 130},
                         {2, 1, 32, 65},
                         {1, 1, 96, 65},
                         {1, 1, 80, 65},
                         {1, 1, 256, 33},
                         {2, 2, 40, 130}})
    add("attention", heads(h), {{{h.T == 63 ? 2 : 1, h.T, (h.H + 2 * h.K) * h.D}, DType::fp32, -2, 2}}, named(h));
  for (const Heads& h :
       {Heads{2, 1, 64, 70}, {1, 1, 64, 300}, {2, 2, 32, 130}, {1, 1, 96, 70}, {2, 1, 128, 150}, {1, 1, 40, 130}})
    for (const int64_t length : {9, 80})
      if (h.T < 300 || length > 9) subjects.push_back(document_subject(h.T < 300 ? 2 : 1, h.T, h.H, h.K, h.D, length));
  // Chunks of queries: of lengths and at positions that Hopper's kernels take, and of others; keys that no query sees.
  struct Chunks {
    int64_t H, K, D, T, keys;
    std::vector<int64_t> firsts;
    int64_t document = 0;  // its length; 0: there is one
  };
  for (const Chunks& c : std::initializer_list<Chunks>{{3, 1, 64, 128, 256, {64, 128}},
                                                       {2, 1, 64, 128, 320, {0, 192}, 50},
                                                       {1, 1, 64, 256, 512, {128, 256}},
                                                       {1, 1, 64, 70, 134, {64}},
                                                       {2, 2, 128, 128, 256, {64, 128}},
                                                       {1, 1, 128, 128, 320, {64, 192}, 80},
                                                       {2, 1, 64, 40, 80, {20, 40}},
                                                       {2, 1, 64, 40, 90, {20, 50}, 30},
                                                       {1, 1, 128, 66, 100, {7, 60}},
                                                       {1, 1, 32, 74, 150, {5, 90}, 40},
                                                       {1, 1, 96, 33, 73, {40}},
                                                       {2, 1, 40, 26, 91, {13, 65}},
                                                       {2, 2, 40, 86, 200, {0, 70}, 60},
                                                       {1, 1, 256, 34, 60, {9, 40}},
                                                       // Behind all keys, or the last one behind them.
                                                       {2, 1, 64, 130, 100, {100}},
                                                       {1, 1, 64, 70, 200, {200}, 90},
                                                       {2, 1, 128, 66, 130, {130}, 70},
                                                       {1, 1, 128, 64, 100, {64}},
                                                       {1, 1, 32, 40, 70, {70}, 50},
                                                       {2, 1, 40, 30, 26, {26}, 20},
                                                       {1, 1, 96, 40, 33, {33}, 60}}) {
    Attributes a = heads({c.H, c.K, c.D, c.T});
    a.set("firsts", c.firsts);
    const int64_t B = c.T < 100 ? 2 : 1;
    Example::Input starts;
    if (c.document) {
      // Of queries behind the keys the first half is in the last document of these, and the others see none.
      starts = {.shape = {B, c.T}, .dtype = DType::int32};
      const int64_t chunk = c.T / static_cast<int64_t>(c.firsts.size());
      for (int64_t i = 0; i < B * c.T; ++i) {
        const int64_t t = i % c.T, position = c.firsts[static_cast<size_t>(t / chunk)] + t % chunk;
        const int64_t start = std::min(position, c.keys - 1) / c.document * c.document;
        starts.values.push_back(static_cast<double>(position < c.keys || t < c.T / 2 ? start : c.keys));
      }
    }
    add("attention", a,
        {{{B, c.T, c.H * c.D}, DType::fp32, -2, 2}, starts, {{B, c.keys, 2 * c.K * c.D}, DType::fp32, -2, 2}},
        concat(named({c.H, c.K, c.D, c.T}), " of ", c.keys, c.document ? " in documents" : ""));
  }
  for (const Heads& h : {Heads{4, 2, 64, 1}, {2, 2, 128, 17}, {3, 1, 64, 40}, {2, 1, 37, 5}, {8, 1, 64, 2}}) {
    // The end of one sequence and a token of another, behind enough keys for several parts.
    const int64_t rows = h.T + 1, first = 290 - h.T;
    std::vector<double> positions, slots, tables;
    for (int64_t i = 0; i < rows; ++i)
      positions.push_back(static_cast<double>(i < h.T ? first + i : 140)), slots.push_back(i < h.T ? 1 : 0);
    for (int64_t i = 0; i < 38; ++i) tables.push_back(static_cast<double>(i * 5 % 38));
    const auto whole = [](Shape shape, std::vector<double> values) {
      return Example::Input{
          .shape = shape, .dtype = DType::int32, .differentiable = false, .values = std::move(values)};
    };
    const Example::Input blocks{.shape = {38, h.K, 16, h.D}, .role = Role::state, .differentiable = false};
    add("attention_paged", heads(h),
        {{.shape = {1, rows, (h.H + 2 * h.K) * h.D}, .low = -2, .high = 2, .differentiable = false},
         blocks,
         blocks,
         whole({1, rows}, std::move(positions)),
         whole({1, rows}, std::move(slots)),
         whole({2, 19}, std::move(tables))},
        named(h));
  }

  for (const auto& [m, n, k] : std::initializer_list<std::array<int64_t, 3>>{
           {130, 65, 64}, {33, 48, 768}, {64, 128, 64}, {1, 300, 200}, {257, 8, 40}})
    for (const bool bias : {false, true}) {
      std::vector<Example::Input> in = {{{1, m, k}}, parameter({n, k})};
      if (bias) in.push_back(parameter({n}));
      add("linear", {}, in, concat(m, " x ", n, " x ", k, bias ? ", bias" : ""));
    }
  for (Subject& s : few_rows_subjects()) subjects.push_back(std::move(s));
  for (const char* activation : {"gelu", "relu2"})
    for (const int64_t n : {64, 65}) {
      const std::string half = activation;
      subjects.push_back({concat("linear + ", activation, ", ", n, " wide"),
                          {{.shape = {2, 40, 64}}, parameter({n, 64}), parameter({n}), parameter({48, n})},
                          [half](Graph& g, const std::vector<TensorId>& in) {
                            const TensorId hidden = g.add("linear", {}, {in[0], in[1], in[2]}, "hidden")[0];
                            g.add("linear", {}, {g.add(half, {}, {hidden}, "activated")[0], in[3]}, "y");
                          },
                          true});
    }
  for (const int64_t n : {4096, 4099}) {
    add("dropout", {{"probability", 0.1}, {"stream", 5}}, {{{n}}}, concat(n));
    add("split_heads", {{"heads", 3}, {"kv_heads", 1}, {"head_size", n / 8}}, {{{1, 7, 5 * (n / 8)}}}, concat(n / 8));
    add("softcap", {{"cap", 3}}, {{{n}, DType::fp32, -9, 9}}, concat(n));
    for (const char* op : {"gelu", "relu2"}) add(op, {}, {{{n}, DType::fp32, -5, 5}}, concat(n));
    add("add", {}, {{{n}}, {{n}}}, concat(n));
    add("swiglu", {}, {{{3, 5, 2 * (n / 8)}, DType::fp32, -5, 5}}, concat(n / 8));
  }
  for (const bool bf16 : {false, true}) {
    add("cast", {{"bf16", bf16}}, {{.shape = {4099}, .differentiable = false, .keeps_fp32 = true}}, "4099 from fp32");
    add("cast", {{"bf16", bf16}}, {{.shape = {4096}, .dtype = DType::bf16}}, "4096 from bf16");
  }

  add("dropout",
      {{"probability", 0.1}, {"stream", 5}, {"firsts", std::vector<int64_t>{40, 90}}, {"chunk", int64_t{20}}},
      {{{2, 40, 64}}}, "chunks");
  add("embedding", {{"firsts", std::vector<int64_t>{40, 90}}},
      {ids({3, 40}, 0, 50), parameter({50, 64}), parameter({112, 64})}, "chunks");
  // Many tokens, most of which occur several times; rows of two strides.
  for (const int64_t C : {64, 37}) {
    add("embedding", {}, {ids({4, 300}, 0, 50), parameter({500, C}), parameter({303, C})}, concat("few tokens, ", C));
    add("embedding", {}, {ids({2, 300}, 0, 50257), parameter({50257, C == 64 ? 8 : 5})}, concat("many tokens, ", C));
  }
  for (const auto& [rows, V] : std::initializer_list<std::pair<int64_t, int64_t>>{{3, 50257}, {5, 1024}, {70, 257}})
    add("cross_entropy", {}, {{{1, rows, V}, DType::fp32, -4, 4}, ids({1, rows}, -1, V)}, concat(rows, " x ", V));
  for (const auto& [rows, V, C] : std::initializer_list<std::array<int64_t, 3>>{{2, 26001, 4}, {130, 1000, 64}})
    for (const bool gradient : {false, true}) {
      if (rows == 2 && !gradient) continue;
      std::vector<Example::Input> in = {{.shape = {1, rows, C}, .low = -2, .high = 2, .differentiable = false},
                                        {.shape = {V, C}, .differentiable = false},
                                        ids({1, rows}, -1, V)};
      if (gradient) in.push_back({{1, rows}, DType::fp32, 0, 1, Role::activation, false, true});
      add("head_loss", {}, in, concat(rows, " x ", V, " x ", C, gradient ? ", gradients" : ""));
    }
  add("cross_entropy", {{"softcap", 15}, {"z_loss", 0.01}},
      {{{1, 3, 50257}, DType::fp32, -20, 20}, ids({1, 3}, -1, 50257)}, "3 x 50257, capped");
  add("head_loss", {{"softcap", 15}, {"z_loss", 0.01}},
      {{.shape = {1, 9, 16}, .low = -4, .high = 4, .differentiable = false},
       {.shape = {26001, 16}, .differentiable = false},
       ids({1, 9}, -1, 26001),
       {{1, 9}, DType::fp32, 0, 1, Role::activation, false, true}},
      "9 x 26001 x 16, capped");
  const auto plain = [](Shape shape, double low, double high, Role role) {
    return Example::Input{shape, DType::fp32, low, high, role, false, true};
  };
  add("mean_loss", {}, {plain({4, 1024}, 0, 9, Role::activation), plain({4, 1024}, 0, 1, Role::activation)}, "4096");

  // More tensors than one launch can take.
  std::vector<Example::Input> gradients, all = {plain({1}, 0.5, 3, Role::activation)}, masters = all;
  for (int64_t i = 0; i < 300; ++i) {
    const Shape shape{1 + i * 37 % 101 * (i % 7 == 0 ? 50 : 1)};
    gradients.push_back(plain(shape, -1, 1, Role::activation));
    for (auto* list : {&all, &masters}) {
      const bool master = list == &masters;
      list->push_back(plain(shape, -1, 1, Role::parameter));
      if (master) list->back().dtype = DType::bf16;
      list->push_back(plain(shape, -1, 1, Role::activation));
      list->push_back(plain(shape, -0.1, 0.1, Role::state));
      list->push_back(plain(shape, 0.001, 0.1, Role::state));
      list->push_back(master ? plain(shape, -1, 1, Role::state) : Example::Input{});
    }
  }
  const Attributes adamw = {{"beta1", 0.9},        {"beta2", 0.95},    {"epsilon", 1e-8},
                            {"weight_decay", 0.1}, {"grad_clip", 1.0}, {"learning_rate_scale", 0.5}};
  std::vector<int64_t> slots(gradients.size());
  for (size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<int64_t>(i);
  add("square_sums", {{"rank", 0}, {"ranks", 1}, {"slots", 300}, {"first_slots", slots}}, gradients, "300 tensors");
  add("adamw", adamw, all, "300 tensors");
  add("adamw", adamw, masters, "300 tensors with masters");
  return subjects;
}

void for_each_cuda_check(const std::function<void(const CudaCheck&)>& use) {
  // A later step, for ops that read it from the device's memory.
  constexpr StepState kLater{.learning_rate = 0.01f, .step = 7, .seed = 5};
  std::vector<std::pair<Subject, StepState>> all;
  for (const Op& op : op_table()) {
    if (!op.examples) continue;
    const std::vector<Example> examples = op.examples();
    for (size_t i = 0; i < examples.size(); ++i) all.emplace_back(subject_of(op, examples[i], i), kLater);
  }
  for (Subject& s : fused_subjects()) all.emplace_back(std::move(s), StepState{});
  for (Subject& s : cuda_subjects()) all.emplace_back(std::move(s), kLater);
  for (auto& [subject, step] : all)
    for (const DType precision : {DType::fp32, DType::bf16}) use(CudaCheck(subject, precision, step));
}

}  // namespace llm::reference
