// Checks the CUDA kernels of one subject in one precision: outputs against the double-precision reference, gradients
// against the CPU's fp32 kernels (which test_ops.cpp holds against finite differences).
#pragma once
#include <functional>
#include <set>
#include <string>

#include "llm/device/cuda.h"
#include "test/op_subjects.h"

namespace llm::reference {

// Errors are relative to the largest value of the tensor. In fp32 they have a bound. In lower precision an error may be
// twice that of the plain computation (gradients: three times), which is the CPU's: each op reads bf16, computes in
// fp32 and rounds what it writes. At least one rounding of the largest value is allowed.
struct CudaErrors {
  double worst[2][2] = {};  // [bf16][gradient]: in fp32 the error; in bf16 error / allowed error
  std::string where[2][2];
};

class CudaCheck {
 public:
  CudaCheck(const Subject& subject, DType precision, const StepState& step = {});

  // The ops of the subject that have no CUDA kernels; where there are any, nothing can be run.
  const std::set<std::string>& missing() const { return missing_; }
  const std::set<std::string>& ops() const { return ops_; }
  const std::string& name() const { return name_; }

  // What is wrong, one line each; empty: nothing. `thorough`: also runs twice, in place, and with accumulation (unless
  // the subject is large).
  std::string run(CudaDevice& device, bool thorough, CudaErrors* errors = nullptr) const;

 private:
  struct Expected {
    TensorId id;  // in built_.whole
    std::string name;
    std::vector<double> values;
    double allowed;
    bool gradient;
  };
  std::string check_values(const Sandbox& sandbox, CudaErrors* errors) const;
  std::string check_in_place(const Sandbox& done, CudaDevice& device) const;
  std::string check_accumulation(Sandbox& sandbox, CudaDevice& device) const;

  Subject subject_;
  DType precision_;
  StepState step_;
  std::string name_;
  size_t memory_ = 0;  // bytes of all tensors
  Built built_;
  std::vector<Expected> expected_;
  std::set<std::string> missing_, ops_;
};

// Subjects beyond the table's examples: sizes at which kernels take another path.
std::vector<Subject> cuda_subjects();
// All subjects: the table's examples, fused chains, and cuda_subjects().
void for_each_cuda_check(const std::function<void(const CudaCheck&)>& use);

}  // namespace llm::reference
