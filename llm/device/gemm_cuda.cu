// Chooses between cuBLASLt's product and the plain kernel.
#include "llm/device/gemm_cuda.h"

#include "llm/device/gemm_plain_cuda.h"
#include "llm/device/gemm_plans.h"

namespace llm {
namespace {

bool is_plain(GemmEpilogue epilogue) { return epilogue == GemmEpilogue::none || epilogue == GemmEpilogue::bias; }

}  // namespace

std::string describe(const CudaGemm& g) {
  return concat("the product of ", g.m, " x ", g.k, " and ", g.k, " x ", g.n, ", ", name_of(g.a.dtype), " by ",
                name_of(g.b.dtype), " to ", name_of(g.c_dtype));
}

bool cuda_gemm_fuses(CudaDevice& device, const CudaGemm& gemm, const std::function<void()>& apart) {
  if (is_plain(gemm.epilogue)) return true;
  return device.gemm_plans() && device.gemm_plans()->fuses(gemm, apart);
}

void cuda_gemm(CudaDevice& device, const CudaGemm& gemm) {
  if (gemm.m == 0 || gemm.n == 0) return;
  if (gemm.accumulate && gemm.epilogue != GemmEpilogue::none && gemm.epilogue != GemmEpilogue::bias_gradient_of_a)
    fail("CUDA: ", describe(gemm), " cannot accumulate with an epilogue");
  if (gemm.k > 0 && device.gemm_plans() && device.gemm_plans()->run(gemm)) return;
  if (!is_plain(gemm.epilogue)) fail("CUDA: cuBLASLt has no algorithm for ", describe(gemm), " with that epilogue");
  gemm_plain_cuda(device.stream(), gemm);
}

}  // namespace llm
