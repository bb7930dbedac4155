// Training of a byte-level BPE vocabulary (Sennrich et al. 2016; GPT-2's byte level, Radford et al. 2019).
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "llm/base/threads.h"
#include "llm/text/tokenizer.h"

namespace llm {

// A vocabulary of at most `vocabulary` ids, 257 or more: the 256 bytes in GPT-2's order, a token for each merge,
// <|endoftext|>. There are fewer where the text has no pair of tokens left that occurs twice. Of pairs that are equally
// frequent the one with the lower ids is merged first, so the result depends on neither threads nor chance. `pattern` splits the
// text into pieces; names of the special token in it are left out. `progress(done, total)` counts bytes of text.
std::unique_ptr<Tokenizer> train_bpe(const std::vector<std::string_view>& texts, int64_t vocabulary,
                                     const std::string& pattern, ThreadTeam& threads,
                                     const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace llm
