// Plans of cuBLASLt products: descriptors, layouts and algorithm, made once for each kind of product and kept. A kind
// is shapes, types, strides, transposes, epilogue and the alignment of the addresses; the addresses may change from
// call to call.
//
// Only algorithms whose sums have one fixed order are used. cuBLASLt's heuristic chooses among them, or, with `tune`, a
// measurement. Since the measurement may choose differently from run to run, and the bits of the results differ with
// it, its choices can be kept in a file.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "llm/device/gemm_cuda.h"

namespace llm {

class GemmPlans {
 public:
  virtual ~GemmPlans() = default;

  // Whether the product should be run with its epilogue: cuBLASLt has an algorithm for it and, with `tune`, that
  // algorithm takes no longer than `apart`, which computes the same by a product without the epilogue and kernels of
  // its own. Makes the plan.
  virtual bool fuses(const CudaGemm& gemm, const std::function<void()>& apart) = 0;
  // Runs the product on the device's stream; false: there is no algorithm for it and nothing was done. Allocates
  // nothing once the plan is made, so the plan should be made (by a run of the program) before a capture.
  virtual bool run(const CudaGemm& gemm) = 0;

  // With `on` (at first it is off) the first run of a plan outside of a capture times the heuristic's candidates on its
  // operands. For a product that accumulates, tuning needs memory for another c; without it the heuristic's choice
  // stands.
  virtual void tune(bool on) = 0;
  // Takes algorithms from the file, if it exists and is of this device and version of cuBLASLt, and from now on writes
  // to it what tuning finds. To be called before the first product.
  virtual void remember(const std::string& path) = 0;
};

[[gnu::weak]] std::unique_ptr<GemmPlans> make_gemm_plans(CudaDevice& device);  // null in the test bed

}  // namespace llm
