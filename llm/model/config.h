// What a model is: its dimensions, and the switches that choose between GPT-2 and the modern GPT. Everything else (the
// parameter table, the graph, memory, cost) follows from them.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "llm/base/names.h"

namespace llm {

enum class Norm { layernorm, rmsnorm };
enum class Positions { learned, rope };
// gelu: tanh form; relu2: relu(x)^2 (So et al. 2021); swiglu and geglu are gated, by SiLU and by GELU (Shazeer 2020)
enum class Activation { gelu, relu2, swiglu, geglu };
// How rotary frequencies are stretched for a longer context (llm/ops/rope_frequency.h). dynamic: only beyond the context, so
// not here; it is kept for the files. longrope: by two lists of divisors, one for texts beyond the original context.
enum class RopeKind { llama3, linear, yarn, dynamic, longrope };
template <>
inline constexpr std::array kNames<Norm> = {"layernorm", "rmsnorm"};
template <>
inline constexpr std::array kNames<Positions> = {"learned", "rope"};
template <>
inline constexpr std::array kNames<Activation> = {"gelu", "relu2", "swiglu", "geglu"};
template <>
inline constexpr std::array kNames<RopeKind> = {"llama3", "linear", "yarn", "dynamic", "longrope"};
inline bool is_gated(Activation a) { return a == Activation::swiglu || a == Activation::geglu; }

struct ModelConfig {
  int64_t vocabulary = 257;
  int64_t context = 256;   // T: the longest sequence
  int64_t layers = 6;      // L
  int64_t heads = 6;       // H
  int64_t kv_heads = 6;    // K: H / K query heads share a key-value head
  int64_t channels = 384;  // C
  int64_t head_size = 64;  // D; H D need not equal C
  int64_t hidden = 1024;   // F: width of the MLP, of each expert where there are experts

  // A mixture of experts in the place of each block's MLP (docs/experts.md); experts 0: none.
  int64_t experts = 0, experts_per_token = 0;
  int64_t shared_hidden = 0;  // width of an MLP that takes every token besides; 0: none
  bool router_bias = false;   // the choice of experts is balanced by a bias, which belongs to the model

  Norm norm = Norm::rmsnorm;
  Positions positions = Positions::rope;
  Activation activation = Activation::swiglu;
  bool qk_norm = true;  // RMSNorm of each query and key head before RoPE (Henry et al. 2020)
  bool bias = false;    // biases in all linear layers but the head
  // Without `bias`: in these alone (Qwen2 has the first, Llama may have any).
  bool qkv_bias = false, attention_out_bias = false, mlp_bias = false;
  bool head_bias = false;
  bool parallel_block = false;  // attention and MLP read one norm of the stream, side by side (Wang 2021, "GPT-J")
  bool post_norms = false;   // what attention and MLP add to the stream is normed as well (Gemma Team 2024, "Gemma 2")
  bool tied_head = false;    // the head's matrix is the token embedding
  double logit_softcap = 0;  // the logits are cap tanh(logit / cap) (Gemma Team 2024, "Gemma 2"); 0: as they are
  double norm_epsilon = 1e-6;
  double embedding_scale = 1;  // what the token embedding is multiplied by at the input (Gemma: sqrt(C))
  double rope_theta = 10000;
  RopeKind rope_kind = RopeKind::llama3;
  double rope_factor = 1, rope_low = 1, rope_high = 4, rope_magnitude = 1;  // factor 1: nothing is stretched
  int64_t rope_original = 8192;
  std::vector<double> rope_near,
      rope_far;             // longrope's divisors of each pair's frequency, up to rope_original and beyond
  int64_t rotary_size = 0;  // the first channels of a head, which alone are turned; 0: all of them
  // Layers but each `global_every`-th have a theta of their own, and nothing stretched (Gemma Team 2025, "Gemma 3"). 0: none.
  int64_t global_every = 0;
  double rope_local_theta = 10000;

  bool operator==(const ModelConfig&) const = default;
  void check() const;  // throws UsageError that names the impossible value
  int64_t query_width() const { return heads * head_size; }
  int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_size; }
  int64_t rotary_width() const { return rotary_size ? rotary_size : head_size; }
  bool is_stretched() const { return rope_factor != 1 || rope_kind == RopeKind::longrope; }
  // Whether a text of so many tokens has other rotary frequencies than shorter ones, from its first token on.
  bool is_far(int64_t tokens) const { return rope_kind == RopeKind::longrope && tokens > rope_original; }
  bool is_local(int64_t layer) const { return global_every > 0 && (layer + 1) % global_every != 0; }

 private:
  void check_experts() const;
  void check_rope() const;
};

// gpt2: Radford et al. 2019. llama: Touvron et al. 2023. modern: llama with QK-norm. qwen3: modern with a tied head.
enum class Architecture { modern, gpt2, llama, qwen3 };
template <>
inline constexpr std::array kNames<Architecture> = {"modern", "gpt2", "llama", "qwen3"};
// Sets all switches of an architecture, and norm_epsilon; dimensions stay as they are, so that `hidden` is the caller's.
void set_architecture(ModelConfig& config, Architecture architecture);
// The usual MLP width: 4 C, or 8/3 C rounded up to a multiple of 32 for the gated SwiGLU, which has a third matrix.
int64_t usual_hidden(int64_t channels, Activation activation);

// Sets the dimensions by the number of layers, on a curve through the presets tiny (4 layers, 128 channels, context 64)
// and GPT-2 (12, 768, 1024): a deeper model is wider, with channels per layer that grow as channels^0.4, and its
// context is longer. `hidden` is usual_hidden().
void set_depth(ModelConfig& config, int64_t layers);  // throws UsageError over 64 layers

struct Preset {
  const char* name;
  const char* also;  // another name, that people use; empty: none
  const char* summary;
  Architecture architecture;
  int64_t layers, heads, kv_heads, channels, head_size, hidden, context, vocabulary;  // vocabulary 0: that of the data
  bool tied_head;
};
std::span<const Preset> presets();
ModelConfig config_of(const Preset& preset);
const Preset* find_preset(std::string_view name);  // in capitals or not; null: there is none
// Throws UsageError that names the nearest preset, and lists them all.
const Preset& preset_named(const std::string& name);

}  // namespace llm
