// What cuBLASLt is asked once for each kind of product, and kept: descriptors, layouts, algorithm. A kind is shapes, types,
// strides, transposes, epilogue and the alignment of the addresses; the addresses themselves may change from call to call.
//
// Only algorithms whose sums have one order are taken. Which of them, cuBLASLt's heuristic says; or, with `tune`, the
// clock. As the clock's choice may differ from run to run, and the bits of the results with it, it can be kept in a file.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "llm/device/gemm_cuda.h"

namespace llm {

class GemmPlans {
 public:
  virtual ~GemmPlans() = default;

  // Whether the product is to be made with its epilogue: cuBLASLt has an algorithm for it, and, with `tune`, that algorithm
  // takes no longer than `apart`, which gives the same by a product without the epilogue and kernels of its own. Makes the plan.
  virtual bool fuses(const CudaGemm& gemm, const std::function<void()>& apart) = 0;
  // Runs it on the device's stream; false: nothing was done, there is no algorithm for it. Allocates nothing once the plan
  // is made, so a plan should be made (by a run of the program) before a capture.
  virtual bool run(const CudaGemm& gemm) = 0;

  // On: the first run of a plan, outside of a capture, times the heuristic's candidates on its operands. Off at first. Tuning
  // needs memory for another c where the product accumulates; without that much the heuristic's choice is taken.
  virtual void tune(bool on) = 0;
  // Algorithms are taken from the file, where it stands and is of this device and version of cuBLASLt, and what `tune` finds
  // is written to it from here on. To be called before the first product.
  virtual void remember(const std::string& path) = 0;
};

[[gnu::weak]] std::unique_ptr<GemmPlans> make_gemm_plans(CudaDevice& device);  // null in the test bed

}  // namespace llm
