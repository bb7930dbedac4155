#include "llm/model/bin_checkpoint.h"

#include <bit>
#include <cstring>

#include "llm/base/error.h"

namespace llm {
namespace {

constexpr int32_t kLlmcMagic = 20240326;
constexpr int64_t kLargestFile = int64_t{1} << 48;

std::string layer(int64_t l, const char* name) { return concat("layers.", l, ".", name); }

}  // namespace

BinCheckpoint::BinCheckpoint(const std::string& path) : file_(path) {
  int32_t first = 0;
  if (file_.bytes().size() < 28) fail(path, ": not a checkpoint, it has only ", file_.bytes().size(), " bytes");
  std::memcpy(&first, file_.bytes().data(), sizeof first);
  is_llmc_ = first == kLlmcMagic;
  try {
    is_llmc_ ? read_llmc() : read_llama2c();
  } catch (const UsageError& e) {  // ModelConfig::check() is worded for a command line
    fail(path, ": not a checkpoint of llm.c or llama2.c: ", e.what());
  }
  check_size();
}

void BinCheckpoint::take(const std::string& parameter, int64_t count, int64_t interleaved, int64_t columns) {
  if (!parameter.empty()) {
    const bool goes_on = !pieces_.empty() && pieces_.back().parameter == parameter;
    pieces_.push_back(
        {parameter, elements_, goes_on ? pieces_.back().to + pieces_.back().count : 0, count, interleaved, columns});
  }
  if (count < 0 || __builtin_add_overflow(elements_, count, &elements_) || elements_ > kLargestFile)
    fail(file_.path(), ": the sizes in its header make more than 2^48 weights");
}

void BinCheckpoint::read_llmc() {
  int32_t h[256];
  if (file_.bytes().size() < sizeof h)
    fail(file_.path(), ": a checkpoint of llm.c, but its ", file_.bytes().size(), " bytes end inside the header");
  std::memcpy(h, file_.bytes().data(), sizeof h);
  if (h[1] != 3 && h[1] != 5)
    fail(file_.path(), ": a checkpoint of llm.c of version ", h[1], "; readable: 3 (fp32) and 5 (bf16)");
  header_ = sizeof h;
  width_ = h[1] == 3 ? 4 : 2;
  ModelConfig& c = config_;
  set_architecture(c, Architecture::gpt2);
  c.context = h[2], c.vocabulary = h[3], c.layers = h[4], c.heads = c.kv_heads = h[5], c.channels = h[6];
  const int64_t padded = h[7];
  c.hidden = 4 * c.channels;
  c.head_size = c.heads > 0 ? c.channels / c.heads : 0;
  c.check();
  if (c.channels % c.heads) fail_usage("its ", c.channels, " channels are not a multiple of its ", c.heads, " heads");
  check_layers();
  if (padded < c.vocabulary || padded > 1 << 24) fail_usage("a vocabulary of ", c.vocabulary, ", padded to ", padded);
  const int64_t C = c.channels, L = c.layers;
  take("token_embedding.weight", c.vocabulary * C);
  take("", (padded - c.vocabulary) * C);
  take("position_embedding.weight", c.context * C);
  const auto all_layers = [&](const char* name, int64_t count) {
    for (int64_t l = 0; l < L; ++l) take(layer(l, name), count);
  };
  all_layers("attention_norm.weight", C);
  all_layers("attention_norm.bias", C);
  all_layers("qkv.weight", 3 * C * C);
  all_layers("qkv.bias", 3 * C);
  all_layers("attention_out.weight", C * C);
  all_layers("attention_out.bias", C);
  all_layers("mlp_norm.weight", C);
  all_layers("mlp_norm.bias", C);
  all_layers("mlp_in.weight", 4 * C * C);
  all_layers("mlp_in.bias", 4 * C);
  all_layers("mlp_out.weight", 4 * C * C);
  all_layers("mlp_out.bias", C);
  take("final_norm.weight", C);
  take("final_norm.bias", C);
}

void BinCheckpoint::read_llama2c() {
  int32_t h[7];
  std::memcpy(h, file_.bytes().data(), sizeof h);
  header_ = sizeof h;
  ModelConfig& c = config_;
  set_architecture(c, Architecture::llama);
  c.channels = h[0], c.hidden = h[1], c.layers = h[2], c.heads = h[3], c.kv_heads = h[4];
  c.tied_head = h[5] > 0;
  c.vocabulary = h[5] > 0 ? int64_t{h[5]} : -int64_t{h[5]};
  c.context = h[6];
  c.head_size = c.heads > 0 ? c.channels / c.heads : 0;
  for (const int64_t value : {c.heads, c.kv_heads})
    if (value < 1) fail_usage("it would have ", value, " heads");
  c.check();
  check_layers();
  if (c.channels % c.heads) fail_usage("its ", c.channels, " channels are not a multiple of its ", c.heads, " heads");
  const int64_t C = c.channels, L = c.layers, D = c.head_size, kv = c.kv_heads * D, F = c.hidden;
  take("token_embedding.weight", c.vocabulary * C);
  // The three matrices of queries, keys and values are one parameter here, the two of the gated MLP another.
  struct Row {
    const char* name;
    int64_t to, count, interleaved;
  };
  for (const Row& part :
       {Row{"attention_norm.weight", 0, C, 0}, Row{"qkv.weight", 0, C * C, D}, Row{"qkv.weight", C * C, kv * C, D},
        Row{"qkv.weight", (C + kv) * C, kv * C, 0}, Row{"attention_out.weight", 0, C * C, 0},
        Row{"mlp_norm.weight", 0, C, 0}, Row{"mlp_in.weight", 0, F * C, 0}, Row{"mlp_out.weight", 0, C * F, 0},
        Row{"mlp_in.weight", F * C, F * C, 0}}) {
    for (int64_t l = 0; l < L; ++l) {
      take(layer(l, part.name), part.count, part.interleaved, C);
      pieces_.back().to = part.to;
    }
  }
  take("final_norm.weight", C);
  take("", c.context * D);  // tables of the rotary angles, which are computed anew
  if (!c.tied_head) take("head.weight", c.vocabulary * C);
}

// A layer has more elements than `channels`: a number of layers that the file cannot hold is refused before a table of
// the layers is made.
void BinCheckpoint::check_layers() const {
  const auto elements = static_cast<int64_t>(file_.bytes().size() / width_);
  if (config_.layers > elements / config_.channels)
    fail(file_.path(), ": not a whole checkpoint of ", is_llmc_ ? "llm.c" : "llama2.c", ": its header says ",
         config_.layers, " layers, it has ", file_.bytes().size(), " bytes");
}

void BinCheckpoint::check_size() const {
  const size_t expected = header_ + static_cast<size_t>(elements_) * width_;
  if (file_.bytes().size() != expected)
    fail(file_.path(), ": not a whole checkpoint of ", is_llmc_ ? "llm.c" : "llama2.c", ": its header says ", expected,
         " bytes, it has ", file_.bytes().size());
}

void BinCheckpoint::load(const std::vector<Parameter>& table,
                         const std::function<float*(size_t index)>& destination) const {
  for (size_t i = 0; i < table.size(); ++i) {
    float* parameter = destination(i);
    int64_t filled = 0;
    for (const Piece& piece : pieces_) {
      if (piece.parameter != table[i].name) continue;
      const std::byte* from = file_.bytes().data() + header_ + static_cast<size_t>(piece.from) * width_;
      const auto element = [&](int64_t at) {
        if (width_ == 4) {
          float value;
          std::memcpy(&value, from + at * 4, sizeof value);
          return value;
        }
        uint16_t bits;
        std::memcpy(&bits, from + at * 2, sizeof bits);
        return std::bit_cast<float>(uint32_t{bits} << 16);
      };
      for (int64_t e = 0; e < piece.count; ++e) {
        int64_t source = e;
        if (piece.interleaved) {
          const int64_t D = piece.interleaved, row = e / piece.columns, in_head = row % D;
          const int64_t paired = in_head < D / 2 ? 2 * in_head : 2 * (in_head - D / 2) + 1;
          source = (row - in_head + paired) * piece.columns + e % piece.columns;
        }
        parameter[piece.to + e] = element(source);
      }
      filled += piece.count;
    }
    if (filled != table[i].shape.elements()) fail(file_.path(), ": it has no ", table[i].name, " of the right size");
  }
}

}  // namespace llm
