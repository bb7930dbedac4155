// cuBLASLt behind GemmPlans. It thinks in columns: a row-major matrix is its transpose there, and c = a b becomes
// c^T = b^T a^T, so b is handed over as its first factor and a as the second, each as it lies in memory.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <map>
#include <set>
#include <vector>

#include "llm/device/arena.h"
#include "llm/device/check_cuda.h"
#include "llm/device/gemm_choices.h"
#include "llm/device/gemm_plans.h"
#include "llm/device/tuning_clock.h"

namespace llm {
namespace {

template <class... What>
void check(cublasStatus_t status, const What&... what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail("cuBLASLt: cannot ", what..., ": ", cublasLtGetStatusString(status), " (", cublasLtGetStatusName(status), ")");
}

struct Destroy {
  void operator()(cublasLtMatmulDescOpaque_t* p) const { cublasLtMatmulDescDestroy(p); }
  void operator()(cublasLtMatrixLayoutOpaque_t* p) const { cublasLtMatrixLayoutDestroy(p); }
  void operator()(cublasLtMatmulPreferenceOpaque_t* p) const { cublasLtMatmulPreferenceDestroy(p); }
};
template <class Opaque>
using Owned = std::unique_ptr<Opaque, Destroy>;

using Key = GemmChoices::Key;
using Algorithm = cublasLtMatmulAlgo_t;

struct Plan {
  Owned<cublasLtMatmulDescOpaque_t> product;
  Owned<cublasLtMatrixLayoutOpaque_t> a, b, c;  // a, b in our order
  bool possible = false, chosen = false;
  bool compared = false, fused = true;  // with what does its epilogue's work in kernels of its own
  Algorithm algorithm{};
};
// Stands among the choices for a product whose epilogue is better done apart.
constexpr GemmChoices::Algorithm kApart{};

// Up to 16 bytes, the widest load: finer distinctions would let the place in memory decide about the bits of a result.
int64_t alignment(const void* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address);
  return bits == 0 ? 16 : static_cast<int64_t>(std::min<uintptr_t>(16, bits & ~(bits - 1)));
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::bf16: return CUDA_R_16BF;
    case DType::e4m3: return CUDA_R_8F_E4M3;
    case DType::e5m2: return CUDA_R_8F_E5M2;
    default: return CUDA_R_32F;
  }
}

// What cuBLASLt's documentation has in its tables of types and alignments; within these, the heuristic decides.
bool is_supported(const CudaGemm& g) {
  const bool to_float = g.c_dtype == DType::fp32, to_bf16 = g.c_dtype == DType::bf16;
  if (is_fp8(g.a.dtype) || is_fp8(g.b.dtype)) {
    const bool types = is_fp8(g.a.dtype) && is_fp8(g.b.dtype) && (g.a.dtype == DType::e4m3 || g.b.dtype == DType::e4m3);
    const bool aligned = g.m % 16 == 0 && g.n % 16 == 0 && g.k % 16 == 0 && g.a.stride % 16 == 0 &&
                         g.b.stride % 16 == 0 && g.c_stride % 16 == 0 && alignment(g.a.data) == 16 &&
                         alignment(g.b.data) == 16 && alignment(g.c) == 16;
    const bool rows_along_k = !g.a.transposed && g.b.transposed;
    return types && aligned && rows_along_k && (to_bf16 || (to_float && !g.bias)) &&
           (g.epilogue == GemmEpilogue::none || g.epilogue == GemmEpilogue::bias);
  }
  const bool types = (g.a.dtype == DType::fp32 && g.b.dtype == DType::fp32 && to_float) ||
                     (g.a.dtype == DType::bf16 && g.b.dtype == DType::bf16 && (to_float || to_bf16));
  // cuBLASLt may approximate its GELU, which shows in fp32 alone.
  const bool is_gelu = g.epilogue == GemmEpilogue::gelu || g.epilogue == GemmEpilogue::gelu_backward;
  if (is_gelu && g.a.dtype == DType::fp32) return false;
  // An auxiliary matrix must be aligned.
  const bool has_auxiliary = g.auxiliary && g.epilogue != GemmEpilogue::none;
  const bool bias_is_aligned = !g.bias || alignment(g.bias) == 16;
  return types && bias_is_aligned && (!has_auxiliary || (g.c_stride % 8 == 0 && alignment(g.auxiliary) == 16));
}

cublasLtEpilogue_t epilogue_of(const CudaGemm& g) {
  switch (g.epilogue) {
    case GemmEpilogue::none: return CUBLASLT_EPILOGUE_DEFAULT;
    case GemmEpilogue::bias: return CUBLASLT_EPILOGUE_BIAS;
    case GemmEpilogue::gelu:
      if (g.auxiliary) return g.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
      return g.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    case GemmEpilogue::gelu_backward: return CUBLASLT_EPILOGUE_DGELU;
    case GemmEpilogue::bias_gradient_of_a: return CUBLASLT_EPILOGUE_BGRADB;  // its second factor is our a
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

size_t bytes_of_c(const CudaGemm& g) { return static_cast<size_t>((g.m - 1) * g.c_stride + g.n) * size_of(g.c_dtype); }

class CublasLtPlans final : public GemmPlans {
 public:
  explicit CublasLtPlans(CudaDevice& device)
      : device_(device), clock_(device), workspace_(kGemmWorkspaceBytes, device) {
    check(cublasLtCreate(&handle_), "start");
  }
  ~CublasLtPlans() override { cublasLtDestroy(handle_); }

  bool fuses(const CudaGemm& gemm, const std::function<void()>& apart) override;

  bool run(const CudaGemm& gemm) override {
    if (!is_supported(gemm)) return refuse(gemm);
    Plan& plan = plan_of(gemm);
    if (!plan.possible) return refuse(gemm);
    set_pointers(plan, gemm);
    if (!plan.chosen) choose(plan, gemm);
    check(launch(plan, gemm, plan.algorithm, gemm.c), "run ", describe(gemm));
    return true;
  }

  void tune(bool on) override { tune_ = on; }
  void remember(const std::string& path) override {
    const CudaProperties& p = device_.properties();
    choices_.remember(path, concat("chosen among 40: cuBLASLt ", cublasLtGetVersion(), ", ", p.name, ", ",
                                   p.multiprocessors, " multiprocessors"));
  }

 private:
  // Said once for each kind: what makes such a product instead is many times slower.
  bool refuse(const CudaGemm& gemm) {
    if (refused_.insert(key_of(gemm)).second)
      std::fprintf(stderr, "note: cuBLASLt has no algorithm for %s; a plain kernel makes it, slowly\n",
                   describe(gemm).c_str());
    return false;
  }

  Key key_of(const CudaGemm& g) const {
    return {g.m,
            g.n,
            g.k,
            static_cast<int64_t>(g.a.dtype),
            g.a.stride,
            g.a.transposed,
            alignment(g.a.data),
            static_cast<int64_t>(g.b.dtype),
            g.b.stride,
            g.b.transposed,
            alignment(g.b.data),
            static_cast<int64_t>(g.c_dtype),
            g.c_stride,
            alignment(g.c),
            g.accumulate,
            static_cast<int64_t>(g.epilogue),
            g.bias != nullptr,
            alignment(g.bias),
            g.auxiliary != nullptr,
            g.a_scale != nullptr,
            g.b_scale != nullptr,
            device_.allow_tf32};
  }

  template <class T>
  static void set(Plan& plan, cublasLtMatmulDescAttributes_t attribute, const T& value) {
    check(cublasLtMatmulDescSetAttribute(plan.product.get(), attribute, &value, sizeof value), "describe a product");
  }

  static void set_pointers(Plan& plan, const CudaGemm& g) {
    if (g.bias) set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g.bias);
    if (g.auxiliary) set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g.auxiliary);
    if (g.a_scale) set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, g.a_scale);
    if (g.b_scale) set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, g.b_scale);
  }

  static Owned<cublasLtMatrixLayoutOpaque_t> layout(DType dtype, int64_t rows, int64_t columns, int64_t stride) {
    cublasLtMatrixLayout_t made = nullptr;
    check(cublasLtMatrixLayoutCreate(&made, type_of(dtype), static_cast<uint64_t>(rows), static_cast<uint64_t>(columns),
                                     stride),
          "describe a matrix");
    return Owned<cublasLtMatrixLayoutOpaque_t>(made);
  }

  Plan& plan_of(const CudaGemm& gemm);
  std::vector<cublasLtMatmulHeuristicResult_t> candidates(const Plan& plan, const CudaGemm& gemm, int count) const;
  void choose(Plan& plan, const CudaGemm& gemm);
  bool fastest(const Plan& plan, const CudaGemm& gemm, Algorithm& best);
  bool still_works(const Plan& plan, const Algorithm& algorithm) const;

  cublasStatus_t launch(const Plan& plan, const CudaGemm& g, const Algorithm& algorithm, void* c) const {
    const float one = 1, beta = g.accumulate ? 1 : 0;
    return cublasLtMatmul(handle_, plan.product.get(), &one, g.b.data, plan.b.get(), g.a.data, plan.a.get(), &beta, g.c,
                          plan.c.get(), c, plan.c.get(), &algorithm, workspace_.data(), kGemmWorkspaceBytes,
                          device_.stream());
  }

  bool capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(device_.stream(), &status), "ask whether a capture is on");
    return status != cudaStreamCaptureStatusNone;
  }

  CudaDevice& device_;
  TuningClock clock_;
  Arena workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
  std::set<Key> refused_;
  bool tune_ = false;
  GemmChoices choices_;
};

Plan& CublasLtPlans::plan_of(const CudaGemm& g) {
  const auto [found, is_new] = plans_.try_emplace(key_of(g));
  Plan& plan = found->second;
  if (!is_new) return plan;
  const bool tf32 = device_.allow_tf32 && g.a.dtype == DType::fp32;
  cublasLtMatmulDesc_t product = nullptr;
  check(cublasLtMatmulDescCreate(&product, tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F),
        "describe ", describe(g));
  plan.product.reset(product);
  const auto operation = [](const CudaMatrix& x) -> int32_t { return x.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(plan, CUBLASLT_MATMUL_DESC_TRANSA, operation(g.b));
  set(plan, CUBLASLT_MATMUL_DESC_TRANSB, operation(g.a));
  set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<uint32_t>(epilogue_of(g)));
  if (g.bias) {
    const bool gradient = g.epilogue == GemmEpilogue::bias_gradient_of_a;
    set(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, static_cast<int32_t>(gradient ? CUDA_R_32F : type_of(g.c_dtype)));
  }
  if (g.auxiliary) {
    set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, g.c_stride);
    set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, static_cast<int32_t>(type_of(g.c_dtype)));
  }
  set_pointers(plan, g);  // their alignment counts already
  plan.a = g.a.transposed ? layout(g.a.dtype, g.m, g.k, g.a.stride) : layout(g.a.dtype, g.k, g.m, g.a.stride);
  plan.b = g.b.transposed ? layout(g.b.dtype, g.k, g.n, g.b.stride) : layout(g.b.dtype, g.n, g.k, g.b.stride);
  plan.c = layout(g.c_dtype, g.n, g.m, g.c_stride);
  plan.possible = !candidates(plan, g, 1).empty();
  return plan;
}

std::vector<cublasLtMatmulHeuristicResult_t> CublasLtPlans::candidates(const Plan& plan, const CudaGemm& g,
                                                                       int count) const {
  cublasLtMatmulPreference_t made = nullptr;
  check(cublasLtMatmulPreferenceCreate(&made), "describe a preference");
  const Owned<cublasLtMatmulPreferenceOpaque_t> preference(made);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(made, attribute, &value, sizeof value), "describe a preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kGemmWorkspaceBytes});
  // Parts of a sum that several blocks make are added up in fp32, in the workspace, by one: in one order.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(alignment(g.b.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(alignment(g.a.data)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(alignment(g.c)));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(alignment(g.c)));
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(count));
  int found = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, plan.product.get(), plan.b.get(), plan.a.get(), plan.c.get(),
                                     plan.c.get(), preference.get(), count, results.data(), &found);
  // For what it does not know, with an epilogue or on this GPU, the answer is any of these.
  const bool refused =
      status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_ARCH_MISMATCH ||
      (status == CUBLAS_STATUS_INVALID_VALUE && (g.epilogue != GemmEpilogue::none || is_fp8(g.a.dtype)));
  if (!refused) check(status, "find an algorithm for ", describe(g));
  results.resize(refused ? 0 : static_cast<size_t>(found));
  std::erase_if(results, [](const cublasLtMatmulHeuristicResult_t& r) {
    return r.state != CUBLAS_STATUS_SUCCESS || r.workspaceSize > kGemmWorkspaceBytes;
  });
  return results;
}

bool CublasLtPlans::still_works(const Plan& plan, const Algorithm& algorithm) const {
  cublasLtMatmulHeuristicResult_t result{};
  return cublasLtMatmulAlgoCheck(handle_, plan.product.get(), plan.b.get(), plan.a.get(), plan.c.get(), plan.c.get(),
                                 &algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= kGemmWorkspaceBytes;
}

// Once for each plan: a later change of mind would change bits.
void CublasLtPlans::choose(Plan& plan, const CudaGemm& gemm) {
  const Key key = key_of(gemm);
  if (tune_ && !choices_.find(key)) choices_.read_file();  // another rank may have found it by now
  const auto kept = choices_.find(key);
  if (kept && *kept != kApart && still_works(plan, std::bit_cast<Algorithm>(*kept))) {
    plan.algorithm = std::bit_cast<Algorithm>(*kept);
  } else if (tune_ && !capturing() && fastest(plan, gemm, plan.algorithm)) {
    choices_.keep(key, std::bit_cast<GemmChoices::Algorithm>(plan.algorithm));
  } else {
    plan.algorithm = candidates(plan, gemm, 1).at(0).algo;
  }
  plan.chosen = true;
}

// Candidates are timed in two rounds: all of them, a few launches each, then the quickest again, for longer.
bool CublasLtPlans::fastest(const Plan& plan, const CudaGemm& gemm, Algorithm& best) {
  constexpr int kCandidates = 40, kFinalists = 6;
  // What must not be added to more than once is added up elsewhere; everything else may be written over and over.
  void* scratch = nullptr;
  if (gemm.accumulate && cudaMalloc(&scratch, bytes_of_c(gemm)) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  const std::unique_ptr<void, cudaError_t (*)(void*)> owned(scratch, cudaFree);
  void* c = scratch ? scratch : gemm.c;
  std::vector<std::pair<double, Algorithm>> timed;  // seconds of a launch
  for (const cublasLtMatmulHeuristicResult_t& candidate : candidates(plan, gemm, kCandidates)) {
    if (launch(plan, gemm, candidate.algo, c) != CUBLAS_STATUS_SUCCESS) continue;  // loads the kernel, too
    const auto again = [&] { check(launch(plan, gemm, candidate.algo, c), "time ", describe(gemm)); };
    timed.emplace_back(clock_.seconds_a_run(again, 4, 0), candidate.algo);
  }
  if (timed.empty()) return false;
  const auto quicker = [](const auto& x, const auto& y) { return x.first < y.first; };
  std::stable_sort(timed.begin(), timed.end(), quicker);
  timed.resize(std::min<size_t>(timed.size(), kFinalists));
  for (auto& [seconds, algorithm] : timed) {
    const auto again = [&] { check(launch(plan, gemm, algorithm, c), "time ", describe(gemm)); };
    seconds = clock_.seconds_a_run(again, kTimedRuns, kTimedSeconds);
  }
  best = std::min_element(timed.begin(), timed.end(), quicker)->second;
  return true;
}

bool CublasLtPlans::fuses(const CudaGemm& gemm, const std::function<void()>& apart) {
  if (!is_supported(gemm)) return false;
  Plan& plan = plan_of(gemm);
  if (!plan.possible) return false;
  if (plan.compared || capturing()) return plan.fused;
  plan.compared = true;
  const auto kept = choices_.find(key_of(gemm));
  if (kept || !tune_) return plan.fused = kept != kApart;
  // A product that adds would do so in each run that is timed. What is faster, its twin that writes over has found.
  if (gemm.accumulate) {
    CudaGemm twin = gemm;
    twin.accumulate = false;
    const auto found = plans_.find(key_of(twin));
    return plan.fused = found == plans_.end() || found->second.fused;
  }
  const auto fused = [&] { run(gemm); };
  fused(), apart();  // each chooses its algorithms first
  const double seconds_fused = clock_.seconds_a_run(fused, kTimedRuns, kTimedSeconds);
  plan.fused = seconds_fused <= clock_.seconds_a_run(apart, kTimedRuns, kTimedSeconds);
  if (!plan.fused) choices_.keep(key_of(gemm), kApart);
  return plan.fused;
}

}  // namespace

std::unique_ptr<GemmPlans> make_gemm_plans(CudaDevice& device) { return std::make_unique<CublasLtPlans>(device); }

}  // namespace llm
