// One subject's CUDA kernels in one precision, held against the double-precision reference (outputs) and the CPU's fp32
// kernels (gradients; those are held against finite differences in test_ops.cpp).
#pragma once
#include <functional>
#include <set>
#include <string>

#include "llm/device/cuda.h"
#include "test/op_subjects.h"

namespace llm::reference {

// Errors are relative to the largest value of the tensor. In fp32 they have a bound. In bf16 an error may be twice that of the
// plain computation (gradients: three times), which is the CPU's: each op reads bf16, computes in fp32 and rounds what
// it writes; but one rounding of the largest value at the least.
struct CudaErrors {
  double worst[2][2] = {};  // [bf16][gradient]: fp32: the error; bf16: its share of what it may be
  std::string where[2][2];
};

class CudaCheck {
 public:
  CudaCheck(const Subject& subject, DType precision, const StepState& step = {});

  // The ops of the subject that have no CUDA kernels: then there is nothing to run.
  const std::set<std::string>& missing() const { return missing_; }
  const std::set<std::string>& ops() const { return ops_; }
  const std::string& name() const { return name_; }

  // What is wrong, one line each; empty: nothing. `thorough`: also run twice, in place, with accumulation (unless it is large).
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

// Beyond the table's examples: sizes at which kernels take another path.
std::vector<Subject> cuda_subjects();
// All of it: the table's examples, fused chains, and those.
void for_each_cuda_check(const std::function<void(const CudaCheck&)>& use);

}  // namespace llm::reference
