#include <string>

#include "llm/ops/ops.h"

namespace llm {

std::span<const Op> op_table() {
  static const std::vector<Op> table = [] {
    std::vector<Op> rows;
#define LLM_ADD_OPS(file) \
  for (Op & op : file##_ops()) rows.push_back(std::move(op));
    LLM_OP_FILES(LLM_ADD_OPS)
#undef LLM_ADD_OPS
    return rows;
  }();
  return table;
}

const Op* op_named(std::string_view name) {
  for (const Op& op : op_table())
    if (name == op.name) return &op;
  fail("there is no op named \"", name, "\"");
}

}  // namespace llm
