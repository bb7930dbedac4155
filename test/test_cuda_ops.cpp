// The CUDA kernels of every op of the table, in fp32 and in bf16: on the test bed, which runs them on the CPU, or on a GPU
// where this file is linked with what nvcc made of them.
#include <doctest/doctest.h>

#include <cstdlib>
#include <iostream>

#include "test/cuda_check.h"

namespace {

using namespace llm;
using namespace llm::reference;

}  // namespace

TEST_CASE("cuda ops: every row of the table, and chains that are fused") {
  if (!cuda_is_built_in() || count_cuda_devices() == 0) {
    MESSAGE("no device: CUDA kernels are not tested");
    return;
  }
  CudaDevice device;
  CudaErrors errors;
  std::set<std::string> executed;
  for_each_cuda_check([&](const CudaCheck& check) {
    if (!check.missing().empty()) return;
    INFO(check.name());
    std::string wrong;
    try {
      wrong = check.run(device, true, &errors);
    } catch (const Error& e) {
      wrong = check.name() + ": " + e.what();
    }
    CHECK(wrong == "");
    executed.insert(check.ops().begin(), check.ops().end());
  });
  for (const Op& op : op_table()) {
    CHECK_MESSAGE(static_cast<bool>(op.cuda), "no CUDA kernels: ", std::string(op.name));
    if (op.cuda)
      CHECK_MESSAGE(executed.contains(op.name), "no example runs the CUDA kernels of ", std::string(op.name));
  }
  if (std::getenv("OP_ERRORS"))
    for (const bool bf16 : {false, true})
      for (const bool gradient : {false, true})
        std::cout << (bf16 ? "bf16, share of the bound" : "fp32, error") << (gradient ? " of gradients: " : ": ")
                  << errors.worst[bf16][gradient] << " (" << errors.where[bf16][gradient] << ")\n";
}
