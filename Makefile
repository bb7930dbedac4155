# `make` builds ./train_gpt, `make help` lists the other targets. Variables to set on the command line:
#
#   CUDA=auto|0|1          auto: with the GPU's code where nvcc is found; 0: without; 1: nvcc must be there
#   CUDART=static|shared   how the CUDA runtime is linked
#   CUDA_ARCHS="80 90"     compute capabilities to compile kernels for; the first also as PTX, for those not listed
#   MARCH=native           the CPU to compile for, as g++'s -march takes it, e.g. x86-64-v3
#   CXX CPPFLAGS CXXFLAGS LDFLAGS TEST_FLAGS BENCH_FLAGS DEMO_FLAGS DATA
#
# Sources are found by name: llm/*/*.{cpp,cu} make train_gpt together with train_gpt.cu, and the test binary together with
# test/*.cpp. Each variant (release, asan, tsan, lint; with or without CUDA) has its objects in a directory of its own.

CUDA ?= auto
CUDART ?= static
CUDA_ARCHS ?= 80 90
MARCH ?= native
VARIANT ?= release
# About a minute on two cores.
DEMO_FLAGS ?= tiny --steps 1500
TEST_RUNNER :=

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# As many jobs as there are processors, unless the user said how many. Whether they did shows in MAKEFLAGS, but only
# while a recipe runs: that is why the targets people type build by calling make again.
JOBS = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))

# Make's own default would be `g++` even where that is too old and a newer one is installed beside it.
USER_CXX := $(if $(filter default undefined,$(origin CXX)),,$(CXX))
SETUP := CXX='$(USER_CXX)' CPPFLAGS='$(CPPFLAGS)' scripts/setup.sh
CXX := $(or $(USER_CXX),$(shell $(SETUP) --compiler 2>/dev/null))

CUDA_FOUND := $(if $(filter-out 0,$(CUDA)),$(shell scripts/find_cuda.sh '$(CUDA)' '$(CUDART)'))
NVCC := $(patsubst nvcc=%,%,$(filter nvcc=%,$(CUDA_FOUND)))
CUDA_VERSION := $(patsubst version=%,%,$(filter version=%,$(CUDA_FOUND)))
CUDA_LIBS := $(patsubst lib=%,%,$(filter lib=%,$(CUDA_FOUND)))

# What cannot be built is said before anything is compiled.
GOALS := $(or $(MAKECMDGOALS),all)
ifneq ($(filter-out clean help setup asan tsan,$(GOALS)),)
ifeq ($(filter CUDA:,$(CUDA_FOUND)),CUDA:)
$(error $(CUDA_FOUND))
endif
endif
ifneq ($(filter all bench train_gpt,$(GOALS)),)
MISSING := $(shell $(SETUP) --check 2>&1)
ifneq ($(MISSING),)
$(error $(MISSING))
endif
endif

# Kernels and text are worth the optimiser's time; the rest has nothing to be fast at and takes long to optimise.
release_flags = $(if $(filter llm/base/% llm/device/% llm/ops/% llm/text/% llm/infer/%,$<),-O3,-O1)
asan_flags := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
# Vectors must stay in registers here: each access to memory is a call.
tsan_flags = $(if $(filter llm/device/% llm/ops/%,$<),-O3,-O1) -g1 -fsanitize=thread
lint_flags := -O1 -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wextra-semi -Wvla \
  -Wduplicated-cond -Wlogical-op -Werror

# What nvcc hands to the host's compiler as well. Not -Wpedantic: nvcc's own generated code is not pedantic.
# (`=`, not `:=`, from here on: the flags depend on the file, $<.)
# Without errno a square root is one instruction. GCC 12's -Wrestrict is wrong about "text" + std::string (GCC bug 105651).
HOST_FLAGS = $($(VARIANT)_flags) -march=$(MARCH) -fno-math-errno -pthread -Wall -Wextra -Wno-restrict
COMPILE = $(CXX) -std=c++20 $(HOST_FLAGS) $(if $(filter lint,$(VARIANT)),-Wpedantic) -I. \
  $(if $(NVCC),-DLLM_CUDA=1) $(if $(filter test/%,$<),-DDOCTEST_CONFIG_SUPER_FAST_ASSERTS) $(CPPFLAGS) $(CXXFLAGS)
LINK = $(CXX) $(HOST_FLAGS) $(CXXFLAGS) $(LDFLAGS)
LIBS :=
# main()'s file ends in .cu, but is C++ where there is no nvcc.
COMPILE_CU = $(COMPILE) -x c++

ifneq ($(NVCC),)
comma := ,
cuda_code = -gencode arch=compute_$(1),code=[sm_$(1)$(2)]
COMPILE_CU = $(NVCC) -ccbin $(lastword $(CXX)) -std=c++20 -I. -DLLM_CUDA=1 $(CPPFLAGS) \
  $(call cuda_code,$(firstword $(CUDA_ARCHS)),$(comma)compute_$(firstword $(CUDA_ARCHS))) \
  $(foreach arch,$(wordlist 2,99,$(CUDA_ARCHS)),$(call cuda_code,$(arch))) \
  $(foreach flag,$(HOST_FLAGS) $(CXXFLAGS),-Xcompiler=$(flag)) $(if $(filter lint,$(VARIANT)),-Werror all-warnings)
# The libraries are found again at run time where they were found now. cuBLASLt is a shared library in either case.
LIBS := $(foreach dir,$(CUDA_LIBS),-L$(dir) -Wl,-rpath,$(dir)) -Wl,--as-needed -lcublasLt \
  $(if $(filter shared,$(CUDART)),-lcudart,-lcudart_static -ldl -lrt)
endif

BUILD := build/$(VARIANT)$(if $(NVCC),-cuda)
LLM_SOURCES := $(wildcard llm/*/*.cpp) $(if $(NVCC),$(wildcard llm/*/*.cu))
TEST_SOURCES := $(wildcard test/*.cpp)
LLM_OBJECTS := $(LLM_SOURCES:%=$(BUILD)/%.o)
MAIN_OBJECTS := $(BUILD)/train_gpt.cu.o
TEST_OBJECTS := $(TEST_SOURCES:%=$(BUILD)/%.o)

# The binary in the top directory is the variant built last.
train_gpt: $(BUILD)/train_gpt FORCE
	@cmp -s $< $@ || cp -f $< $@

$(BUILD)/train_gpt: $(MAIN_OBJECTS) $(LLM_OBJECTS) $(BUILD)/link.stamp
$(BUILD)/run_tests: $(TEST_OBJECTS) $(LLM_OBJECTS) $(BUILD)/link.stamp
$(BUILD)/train_gpt $(BUILD)/run_tests:
	@echo "  link    $@"
	@$(LINK) $(filter %.o,$^) $(LIBS) -o $@

$(BUILD)/%.cpp.o: %.cpp $(BUILD)/compile.stamp
	@mkdir -p $(@D)
	@echo "  compile $<"
	@$(COMPILE) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

$(BUILD)/%.cu.o: %.cu $(BUILD)/compile.stamp
	@mkdir -p $(@D)
	@echo "  compile $<"
	@$(COMPILE_CU) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

# A stamp holds the text of what else the objects or the binaries depend on: flags, the compiler and the CPU that `native`
# means here; which objects there are. It is written, and so gets newer, only when that text changes.
compile_text = echo '$(COMPILE) $(COMPILE_CU)'; $(CXX) -march=$(MARCH) -E -v - </dev/null 2>&1 | grep cc1
link_text = echo '$(LINK) $(LIBS) $(MAIN_OBJECTS) $(LLM_OBJECTS) $(TEST_OBJECTS)'
$(BUILD)/compile.stamp $(BUILD)/link.stamp: FORCE
	@mkdir -p $(@D)
	@{ $($(basename $(@F))_text); } >$@.new; if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

objects: $(MAIN_OBJECTS) $(LLM_OBJECTS) $(TEST_OBJECTS)

# What each source included when it was compiled last.
-include $(patsubst %.o,%.d,$(MAIN_OBJECTS) $(LLM_OBJECTS) $(TEST_OBJECTS))

all: ## build ./train_gpt (the default)
	@$(MAKE) $(JOBS) train_gpt
	@echo "built ./train_gpt for $(if $(NVCC),CPU and CUDA $(CUDA_VERSION),CPU only$(if $(filter 0,$(CUDA)),, (no CUDA Toolkit found))); next: ./train_gpt train --data FILE.txt, or make demo"

setup: ## install the packages that a build needs (Debian, Ubuntu), if any is missing
	@$(SETUP)

# DATA=FILE.txt takes another text than the one that get_corpus.sh gets.
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
	@TRAIN_GPT_BINARY=$(BUILD)/train_gpt $(TEST_RUNNER) $(BUILD)/run_tests $(TEST_FLAGS)

# The sanitizers watch the CPU's code; CUDA's libraries do not go together with them.
asan: ## run the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) VARIANT=asan CUDA=0 test

# ThreadSanitizer needs the usual places in memory, which newer kernels randomise away.
tsan: ## run the tests under ThreadSanitizer
	@$(MAKE) VARIANT=tsan CUDA=0 TEST_RUNNER="$$(setarch -R true 2>/dev/null && echo setarch -R)" test

lint: ## check the format, who includes whom, and the compilers' warnings
	@$(SETUP) lint
	@scripts/check_rooms.sh
	@$$(command -v clang-format-14 || echo clang-format) --dry-run --Werror \
	  $(wildcard *.cu llm/*/*.h llm/*/*.cpp llm/*/*.cu test/*.h test/*.cpp test/*.cu)
	@$(MAKE) $(JOBS) VARIANT=lint objects
	@echo "lint: clean"

bench: ## measure this machine and every op on it (BENCH_FLAGS=...)
	@$(MAKE) $(JOBS) train_gpt
	@./train_gpt bench $(BENCH_FLAGS)

clean: ## remove what was built
	@rm -rf build train_gpt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

FORCE:
.PHONY: all setup demo test asan tsan lint bench clean help objects FORCE
