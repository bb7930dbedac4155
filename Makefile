# `make` builds ./train_gpt, `make help` lists the other targets. Variables to set on the command line:
#
#   CUDA=auto|0|1           auto: with the GPU's code where nvcc is found; 0: without; 1: nvcc must be there
#   CUDART=static|shared    how the CUDA runtime is linked
#   CUDA_ARCHS="80 90a 120" the compute capabilities to compile kernels for, the first one also as PTX, for GPUs of
#                           none of them (by default those of this machine's GPUs, or these three where there is
#                           none); Hopper's own kernels need 90a, not 90
#   MARCH=native            the CPU to compile for, as g++'s -march takes it, e.g. x86-64-v3 (`make portable`: for all)
#   MPI=auto|0|1            auto: ranks on several hosts by MPI where mpicxx is found (Debian's libopenmpi-dev); 0:
#                           without; 1: it must be there
#   NCCL=auto|0|1           the same for ranks that are GPUs, by NCCL
#   HTTP=auto|0             auto: with `train_gpt serve` where cpp-httplib is found; 0: without
#   ONEDNN=1                with oneDNN (Debian's libdnnl-dev), which `bench --products` then measures, too
#   CXX CPPFLAGS CXXFLAGS LDFLAGS TEST_FLAGS BENCH_FLAGS DEMO_FLAGS SOAK_FLAGS DATA
#
# Sources are found by name: llm/*/*.cpp and train_gpt.cu make train_gpt, with nvcc llm/*/*.cu as well. The tests are
# test/*.cpp; they run the kernels of llm/*/*.cu in a test bed (test/simt), for which the same files are compiled as
# C++, so they need neither nvcc nor a GPU. (`make gpu-test` runs them on a GPU.) Each variant (release, asan, tsan) has
# its objects in directories of its own: build/VARIANT, build/VARIANT/cuda (by nvcc), build/VARIANT/simt (for the test
# bed; not tsan). `make portable` (portable/portable.mk) has such a directory for each kind of CPU:
# build/portable/x86-64 and so on.

CUDA ?= auto
CUDART ?= static
MARCH ?= native
VARIANT ?= release
MPI ?= auto
NCCL ?= auto
ONEDNN ?= 0
HTTP ?= auto
# This demo trains for about a minute on two cores.
DEMO_FLAGS ?= tiny --steps 1500
TEST_RUNNER :=

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# As many jobs as there are processors, unless the user said how many. Whether they did shows in MAKEFLAGS, but only
# while a recipe runs: hence the targets that people type call make again to build.
JOBS = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))

# Make's own default would be `g++`, even where that is too old and a newer version is installed beside it.
USER_CXX := $(if $(filter default undefined,$(origin CXX)),,$(CXX))
FOR_ONEDNN := $(if $(filter 1,$(ONEDNN)),onednn)
SETUP := CXX='$(USER_CXX)' CPPFLAGS='$(CPPFLAGS)' scripts/setup.sh
CXX := $(or $(USER_CXX),$(shell $(SETUP) --compiler 2>/dev/null))

CUDA_FOUND := $(if $(filter-out 0,$(CUDA)),$(shell scripts/find_cuda.sh '$(CUDA)' '$(CUDART)'))
NVCC := $(patsubst nvcc=%,%,$(filter nvcc=%,$(CUDA_FOUND)))
CUDA_VERSION := $(patsubst version=%,%,$(filter version=%,$(CUDA_FOUND)))
CUDA_LIBS := $(patsubst lib=%,%,$(filter lib=%,$(CUDA_FOUND)))
CUDA_ARCHS ?= $(or $(patsubst arch=%,%,$(filter arch=%,$(CUDA_FOUND))),80 90a 120)

MPICXX := $(if $(filter-out 0,$(MPI)),$(shell command -v mpicxx))
MPI_FLAGS := $(if $(MPICXX),$(patsubst -I%,-isystem%,$(filter -I%,$(shell $(MPICXX) --showme:compile 2>/dev/null || $(MPICXX) -compile_info))))
# (Without the C++ bindings, which MPI 3 removed.)
MPI_LIBS := $(if $(MPICXX),$(filter-out -lmpi_cxx,$(filter -L% -l%,$(shell $(MPICXX) --showme:link 2>/dev/null || $(MPICXX) -link_info))))

NCCL_HEADER := $(if $(NVCC),$(if $(filter-out 0,$(NCCL)),$(firstword $(wildcard $(dir $(NVCC))../include/nccl.h /usr/include/nccl.h /usr/local/include/nccl.h))))

# What cannot be built is reported before anything is compiled.
GOALS := $(or $(MAKECMDGOALS),all)
ifneq ($(filter-out clean help setup compdb asan tsan fuzz,$(GOALS)),)
ifeq ($(filter CUDA:,$(CUDA_FOUND)),CUDA:)
$(error $(CUDA_FOUND))
endif
endif
ifeq ($(NCCL)$(NCCL_HEADER),1)
$(error NCCL=1, but there is no nccl.h (Debian: libnccl-dev), or no CUDA; `make NCCL=0` builds without)
endif
ifeq ($(MPI)$(MPICXX),1)
$(error MPI=1, but there is no mpicxx on PATH (Debian: libopenmpi-dev); `make MPI=0` builds without)
endif
ifneq ($(filter all bench train_gpt portable install,$(GOALS)),)
MISSING := $(shell $(SETUP) --check $(FOR_ONEDNN) 2>&1)
ifneq ($(MISSING),)
$(error $(MISSING))
endif
endif

# Kernels and text are worth the optimiser's time; the other files need not be fast and take long to optimise.
release_flags = $(if $(filter llm/base/% llm/device/% llm/ops/% llm/text/% llm/infer/% test/simt/%,$<),-O3,-O1)
# (To check whether an object is a CudaDevice takes that type, which a binary without CUDA lacks. GCC 12 warns wrongly of variants.)
asan_flags = -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-maybe-uninitialized \
  $(if $(filter llm/cli/%,$<),-fno-sanitize=vptr)
# -O3 keeps vectors in registers: under ThreadSanitizer each access to memory is a call.
tsan_flags = $(if $(filter llm/device/% llm/ops/%,$<),-O3,-O1) -g1 -fsanitize=thread

WARNINGS := -Wall -Wextra -Wno-restrict -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wextra-semi -Wvla \
  -Wduplicated-cond -Wlogical-op
# The flags that nvcc hands to the host's compiler as well, without -Wpedantic: the code that nvcc generates is not
# pedantic. (`=`, not `:=`, from here on: the flags depend on the file, $<.) Without errno a square root is one
# instruction. GCC 12's -Wrestrict is wrong about "text" + std::string (GCC bug 105651).
HOST_FLAGS = $($(VARIANT)_flags) -march=$(MARCH) -fno-math-errno -pthread $(WARNINGS)
COMPILE = $(CXX) -std=c++20 $(HOST_FLAGS) -Wpedantic -I. \
  $(if $(filter %_mpi.cpp,$<),$(MPI_FLAGS)) $(if $(filter test/%,$<),-DDOCTEST_CONFIG_SUPER_FAST_ASSERTS) \
  $(if $(filter llm/serve/http.cpp,$<),$(HTTP_FLAGS)) $(if $(filter llm/serve/page.cpp llm/device/hardware.cpp,$<),-I$(BUILD)) $(CPPFLAGS) $(CXXFLAGS)
LINK = $(CXX) $(HOST_FLAGS) $(CXXFLAGS) $(LDFLAGS)
# A .cu file as C++: train_gpt.cu, which has main() and no kernel, and the kernels for the test bed, whose
# cuda_runtime.h comes first in the include path.
COMPILE_CU = $(COMPILE) -DTRAIN_GPT_MARCH=$(MARCH) -x c++
# In the release build the bed's kernels are compiled as for ThreadSanitizer, but linked without it: the bed takes the
# sanitizer's calls and watches every access itself.
WATCH := $(if $(filter release,$(VARIANT)),-fsanitize=thread)
COMPILE_SIMT = $(COMPILE) -Itest/simt -Wno-unknown-pragmas $(if $(filter %.cu test/simt/samples.cpp,$<),$(WATCH)) $(if $(filter %.cu,$<),-x c++)

# Debian's cpp-httplib is a library, whose .pc file has the flags that its header must be compiled with. (Elsewhere the
# header is all there is. Without it llm/serve/http.cpp says so when somebody wants to serve.)
HTTP_PC := $(if $(filter-out 0,$(HTTP)),$(firstword $(wildcard /usr/lib/*/pkgconfig/cpp-httplib.pc)))
HTTP_FLAGS := $(if $(filter 0,$(HTTP)),-DTRAIN_GPT_WITHOUT_HTTP) $(if $(HTTP_PC),$(filter -D%,$(shell sed -n 's/^Cflags://p' $(HTTP_PC))))
LIBS := -lonig -lpcre2-8 -lutf8proc -lz -lzstd $(MPI_LIBS) $(if $(HTTP_PC),-lcpp-httplib) $(if $(FOR_ONEDNN),-ldnnl -lgomp)
ifneq ($(NVCC),)
comma := ,
cuda_code = -gencode arch=compute_$(1),code=[sm_$(1)$(2)]
# (A file that only calls one of CUDA's libraries has no code for a GPU; nvcc 13.0's own front end aborts on it.)
COMPILE_CUDA = $(NVCC) $(if $(filter %_cublaslt.cu %_nccl.cu,$<),-x c++) -ccbin $(lastword $(CXX)) -std=c++20 -I. --expt-relaxed-constexpr -lineinfo $(CPPFLAGS) \
  $(if $(filter 90a,$(CUDA_ARCHS)),-DTRAIN_GPT_SM_90A) \
  $(call cuda_code,$(firstword $(CUDA_ARCHS)),$(comma)compute_$(firstword $(CUDA_ARCHS))) \
  $(foreach arch,$(wordlist 2,99,$(CUDA_ARCHS)),$(call cuda_code,$(arch))) \
  $(foreach flag,$(HOST_FLAGS) $(CXXFLAGS),-Xcompiler=$(flag))
# The rpath makes the program find the libraries where they were found now. cuBLASLt is a shared library in either case.
LIBS += $(foreach dir,$(CUDA_LIBS),-L$(dir) -Wl,-rpath,$(dir)) -Wl,--as-needed -lcublasLt $(if $(NCCL_HEADER),-lnccl) \
  $(if $(filter shared,$(CUDART)),-lcudart,-lcudart_static -ldl -lrt)
endif

BUILD = build/$(VARIANT)
KERNELS := $(wildcard llm/*/*.cu)
LLM_OBJECTS := $(patsubst %,$(BUILD)/%.o,$(filter-out $(if $(FOR_ONEDNN),,%_onednn.cpp) $(if $(MPICXX),,%_mpi.cpp),$(wildcard llm/*/*.cpp)))
MAIN_OBJECTS := $(BUILD)/train_gpt.cu.o
# ThreadSanitizer is for the CPU's threads. The tests on the test bed, which has no threads and watches the kernels'
# accesses itself, are left out of its build.
TEST_OBJECTS := $(patsubst %,$(BUILD)/%.o,$(filter-out $(if $(filter tsan,$(VARIANT)),test/test_cuda_%),$(wildcard test/*.cpp)))
CUDA_OBJECTS := $(if $(NVCC),$(patsubst %,$(BUILD)/cuda/%.o,$(filter-out $(if $(NCCL_HEADER),,%_nccl.cu),$(KERNELS))))
# What only a GPU's libraries can do has a stand-in in test/simt.
SIMT_OBJECTS := $(if $(filter-out tsan,$(VARIANT)),$(patsubst %,$(BUILD)/simt/%.o,$(filter-out %_cublaslt.cu %_nccl.cu,$(KERNELS)) $(wildcard test/simt/*.cpp)))

include portable/portable.mk

# The binary in the top directory is the one that was built last.
train_gpt: $(BUILD)/train_gpt FORCE
	@cmp -s $< $@ || cp -f $< $@

$(BUILD)/train_gpt: $(MAIN_OBJECTS) $(LLM_OBJECTS) $(CUDA_OBJECTS) $(BUILD)/link.stamp
$(BUILD)/run_tests: $(TEST_OBJECTS) $(SIMT_OBJECTS) $(LLM_OBJECTS) $(BUILD)/link.stamp
$(BUILD)/run_gpu_tests: $(TEST_OBJECTS) $(CUDA_OBJECTS) $(LLM_OBJECTS) $(BUILD)/link.stamp
$(BUILD)/train_gpt $(BUILD)/run_tests $(BUILD)/run_gpu_tests:
	@echo "  link    $@"
	@$(LINK) $(filter %.o,$^) $(LIBS) -o $@

# A compiler's warnings are kept beside the object, where `make lint` looks for them.
define compile
@mkdir -p $(@D)
@echo "  $(2)"
@$(1) $(if $(MAKE_TERMERR),$(COLOURS)) -MMD -MP -MF $(@:.o=.d) -c $< -o $@ 2>$@.warnings; \
  status=$$?; cat $@.warnings >&2; exit $$status
endef
$(BUILD)/%.cpp.o $(BUILD)/simt/%.o $(BUILD)/%.cu.o: COLOURS := -fdiagnostics-color=always

# The standard headers, compiled once (llm/base/precompiled.h), for all files but those with -O3: there GCC 12's warnings about
# strings are wrong where the header is precompiled. Only GCC finds such a header by this name.
PRECOMPILED := $(if $(filter tsan,$(VARIANT)),,$(if $(findstring Free Software,$(shell $(CXX) --version 2>&1)),$(BUILD)/precompiled.h.gch))
include_precompiled = $(if $(PRECOMPILED),$(if $(filter -O1,$($(VARIANT)_flags)),-include $(PRECOMPILED:.gch=)))

$(BUILD)/%.cpp.o: %.cpp $(BUILD)/compile.stamp $(PRECOMPILED)
	$(call compile,$(COMPILE) $(include_precompiled),compile $<)

$(BUILD)/precompiled.h.gch: llm/base/precompiled.h $(BUILD)/compile.stamp
	@echo '#include "$<"' >$(@:.gch=)
	@echo "  compile $<"
	@$(COMPILE) -O1 -x c++-header $(@:.gch=) -o $@

# Descriptions of machines become a table of the program.
HARDWARE := $(sort $(wildcard data/hardware/*.json))
$(BUILD)/llm/device/hardware.cpp.o: $(BUILD)/llm/device/hardware.inc
$(BUILD)/llm/device/hardware.inc: $(HARDWARE)
	@mkdir -p $(@D)
	@for file in $^; do printf '{"%s", R"json(' "$$(basename $$file .json)"; cat $$file; printf ')json"},\n'; done >$@

# The server's page becomes a string of the program.
$(BUILD)/llm/serve/page.cpp.o: $(BUILD)/llm/serve/page.html.inc
$(BUILD)/llm/serve/page.html.inc: llm/serve/page.html
	@mkdir -p $(@D)
	@{ printf 'R"page('; cat $<; printf ')page"\n'; } >$@

$(BUILD)/simt/%.o: % $(BUILD)/compile_simt.stamp
	$(call compile,$(COMPILE_SIMT),compile $< for the test bed)

$(BUILD)/cuda/%.o: % $(BUILD)/compile_cuda.stamp
	$(call compile,$(COMPILE_CUDA),nvcc    $<)

$(BUILD)/%.cu.o: %.cu $(BUILD)/compile.stamp
	$(call compile,$(COMPILE_CU),compile $<)

# A stamp holds the text of all that objects or binaries depend on beside their sources: the flags, the compiler, the
# CPU that `native` means here, and for the binaries which objects there are. A stamp is written, and so gets newer,
# only when its text changes.
compile_text = echo '$(COMPILE) $(HTTP_FLAGS)'; $(CXX) -march=$(MARCH) -E -v - </dev/null 2>&1 | grep cc1
compile_simt_text = echo '$(COMPILE_SIMT) $(WATCH)'; $(CXX) -march=$(MARCH) -E -v - </dev/null 2>&1 | grep cc1
compile_cuda_text = echo '$(COMPILE_CUDA)'; $(CXX) -march=$(MARCH) -E -v - </dev/null 2>&1 | grep cc1
link_text = echo '$(LINK) $(LIBS) $(MAIN_OBJECTS) $(LLM_OBJECTS) $(CUDA_OBJECTS) $(SIMT_OBJECTS) $(TEST_OBJECTS)'
$(BUILD)/compile.stamp $(BUILD)/compile_simt.stamp $(BUILD)/compile_cuda.stamp $(BUILD)/link.stamp: FORCE
	@mkdir -p $(@D)
	@{ $($(basename $(@F))_text); } >$@.new; if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# `make lint` builds the same objects as `make` and `make test`, and fails where a compiler had warnings for one.
without-warnings: $(MAIN_OBJECTS) $(LLM_OBJECTS) $(CUDA_OBJECTS) $(SIMT_OBJECTS) $(TEST_OBJECTS)
	@said=$$(find $(^:=.warnings) -size +0); [ -z "$$said" ] || { cat $$said >&2; exit 1; }

# The files that each source included when it was compiled last.
-include $(patsubst %.o,%.d,$(MAIN_OBJECTS) $(LLM_OBJECTS) $(CUDA_OBJECTS) $(SIMT_OBJECTS) $(TEST_OBJECTS))

all: ## build ./train_gpt (the default)
	@$(MAKE) $(JOBS) train_gpt
	@echo "built ./train_gpt for $(if $(NVCC),CPU and CUDA $(CUDA_VERSION),CPU only$(if $(filter 0,$(CUDA)),, (no CUDA Toolkit found))); next: ./train_gpt train --data FILE.txt, or make demo"

setup: ## install the packages that a build needs (Debian, Ubuntu), if any is missing
	@$(SETUP) $(FOR_ONEDNN)

# DATA=FILE.txt takes another text than the one that scripts/get_corpus.sh gets.
demo: ## train a small model on a text, evaluate it and let it write (DATA=FILE.txt: your text)
	@echo "demo: build" >&2
	@$(SETUP)
	@$(MAKE) $(JOBS) train_gpt
	@echo "demo: text" >&2
	@set -e; data=$(if $(DATA),'$(DATA)',$$(scripts/get_corpus.sh)); rm -rf runs/demo; \
	  say() { echo "demo: $$1: ./train_gpt $$2" >&2; }; \
	  say train "train --data $$data --out runs/demo $(DEMO_FLAGS)"; \
	  ./train_gpt train --data "$$data" --out runs/demo $(DEMO_FLAGS); \
	  say evaluate "eval runs/demo --data $$data"; \
	  ./train_gpt eval runs/demo --data "$$data"; \
	  say generate "generate runs/demo --prompt \"In the beginning\" --max-tokens 300"; \
	  ./train_gpt generate runs/demo --prompt "In the beginning" --max-tokens 300

test: ## build and run the tests (TEST_FLAGS='-tc=*gemm*': some of them)
	@$(SETUP)
	@$(MAKE) $(JOBS) $(BUILD)/train_gpt $(BUILD)/run_tests
	@TRAIN_GPT_BINARY=$(BUILD)/train_gpt $(TEST_RUNNER) $(BUILD)/run_tests --jobs=$(shell nproc) $(TEST_FLAGS)

gpu-test: ## run the tests with the kernels on this machine's GPU
	@$(MAKE) $(JOBS) $(BUILD)/train_gpt $(BUILD)/run_gpu_tests
	@TRAIN_GPT_BINARY=$(BUILD)/train_gpt $(TEST_RUNNER) $(BUILD)/run_gpu_tests $(TEST_FLAGS)

sweep-test: ## run the tests of scripts/sweep.py (they need numpy, scipy, matplotlib; some minutes)
	@$(MAKE) $(JOBS) train_gpt
	@test/test_sweep_law.py
	@test/test_sweep.py

parallel-test: ## check that a run has the same bits on any number of ranks: the whole table (some minutes)
	@$(MAKE) $(JOBS) train_gpt
	@test/test_parallel.sh ./train_gpt

serve-test: ## try `train_gpt serve` with the openai package, lm-eval, a load generator, Chromium, and a soak (PyPI, 2 GB)
	@$(SETUP) serve
	@$(MAKE) $(JOBS) train_gpt
	@test/serve/run.sh $(SOAK_FLAGS)

fuzz: ## fuzz every reader for a minute each (FUZZ_SECONDS=600, FUZZ='safetensors config')
	@$(SETUP) fuzz
	@$(MAKE) $(JOBS) -f test/fuzz/Makefile $(patsubst %,build/fuzz/%,$(basename $(notdir $(wildcard test/fuzz/*.cpp))))
	@$(MAKE) -j1 -f test/fuzz/Makefile

# AddressSanitizer watches the CPU's code, and the kernels in the test bed; CUDA's libraries do not work under it.
asan: ## run the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) VARIANT=asan CUDA=0 test

# ThreadSanitizer needs the usual layout of memory, which newer Linux kernels randomise.
tsan: ## run the CPU's tests under ThreadSanitizer
	@$(MAKE) VARIANT=tsan CUDA=0 TEST_RUNNER="$$(setarch -R true 2>/dev/null && echo setarch -R)" test

lint: ## check the format, who includes whom, and the compilers' warnings
	@$(SETUP) lint
	@scripts/check_rooms.sh
	@$$(command -v clang-format-14 || echo clang-format) --dry-run --Werror \
	  $(wildcard *.cu portable/*.cpp llm/*/*.h llm/*/*.cpp llm/*/*.cu test/*.h test/*.cpp test/*/*.h test/*/*.cpp)
	@$(MAKE) $(JOBS) without-warnings
	@echo "lint: clean"

bench: ## measure this machine and every op on it (BENCH_FLAGS=...)
	@$(MAKE) $(JOBS) train_gpt
	@./train_gpt bench $(BENCH_FLAGS)

gpu-report: ## build, test and measure on this machine's GPU, beside PyTorch; writes gpu-report.md
	@scripts/gpu_report.sh gpu-report.md

gpu-pack: ## build for a GPU elsewhere and pack what gpu-report measures (CUDA_ARCHS=90a MARCH=x86-64-v3)
	@scripts/gpu_pack.sh

compdb: ## write compile_commands.json, for editors
	@scripts/compdb.sh >compile_commands.json

PREFIX ?= /usr/local
install: ## install train_gpt, its manual page and bash's completion (PREFIX=/usr/local, DESTDIR)
	@$(MAKE) $(JOBS) train_gpt
	@install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	@install -m 755 train_gpt $(DESTDIR)$(PREFIX)/bin/
	@scripts/make_man.sh man ./train_gpt >$(DESTDIR)$(PREFIX)/share/man/man1/train_gpt.1
	@scripts/make_man.sh completion ./train_gpt >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/train_gpt
	@echo "installed $(DESTDIR)$(PREFIX)/bin/train_gpt"

clean: ## remove what was built
	@rm -rf build train_gpt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile portable/portable.mk

FORCE:
.PHONY: all setup demo test sweep-test serve-test gpu-test gpu-report gpu-pack compdb install asan tsan lint bench fuzz clean help without-warnings FORCE
