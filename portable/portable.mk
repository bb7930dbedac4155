# `make portable`: the program once for each kind of x86-64 CPU, in one binary (portable/README.md says how and why).
# The Makefile includes this file, which uses its variables and adds to MAIN_OBJECTS and LINK.

CHOICE := $(BUILD)/portable/choose_copy.cpp.o

# The program as one object, from which only its main() can be seen, under the name $(COPY_NAME), so that no inline
# function compiled for AVX-512 takes the place of the same function of another copy. Its constructors are in a section
# whose ends the linker tells choose_copy.cpp.
COPY_NAME = train_gpt_$(subst -,_,$(MARCH))
$(BUILD)/copy.o: $(MAIN_OBJECTS) $(LLM_OBJECTS)
	@echo "  join    $@"
	@$(CXX) -r -nostdlib -Wl,--force-group-allocation $^ -o $@.joined
	@objcopy --redefine-sym main=$(COPY_NAME) --keep-global-symbol=$(COPY_NAME) \
	  --rename-section .init_array=$(COPY_NAME:train_gpt%=constructors%) $@.joined $@
	@rm $@.joined
	@seen=$$(nm --extern-only --defined-only --format=just-symbols $@ | tr '\n' ' '); \
	  [ "$$seen" = "$(COPY_NAME) " ] || { echo "$@: can be seen from outside: $$seen" >&2; exit 1; }
	@! objdump -h $@ | grep -E '\.(init_array|ctors|preinit_array)' || { echo "$@: constructors that would always run" >&2; exit 1; }

# COPIES is set by `make portable`, for the last link.
ifneq ($(COPIES),)
MAIN_OBJECTS += $(CHOICE) $(COPIES)
LINK += -Wl,--wrap=main
endif

# The plain copy is linked as usual: its code runs everywhere, and CUDA's objects, which are there once, call it.
# -fno-gnu-unique gives each copy its own static variables of inline functions; by default g++ makes them unique in the
# program.
COPY_LEVELS := x86-64-v3 x86-64-v4
level = MARCH=$(1) BUILD=build/portable/$(1) CXXFLAGS='$(CXXFLAGS) -fno-gnu-unique'
portable: ## build ./train_gpt for every x86-64 CPU: plain, AVX2 and AVX-512 code in one, chosen when it starts
	@set -e; for level in $(COPY_LEVELS); do $(MAKE) $(JOBS) CUDA=0 $(call level,$$level) build/portable/$$level/copy.o; done
	@$(MAKE) $(JOBS) $(call level,x86-64) COPIES='$(COPY_LEVELS:%=build/portable/%/copy.o)' train_gpt
	@echo "built ./train_gpt for every x86-64 CPU; next: ./train_gpt --version"

# This takes too long for continuous integration: it compiles everything three times, and the tests, too.
portable-test: portable ## test what `make portable` builds: the choice of a copy, and all tests for each (half an hour)
	@portable/check.sh
	@set -e; for level in x86-64 $(COPY_LEVELS); do \
	  TRAIN_GPT_CPU=$$level ./train_gpt --version >/dev/null || continue; \
	  $(MAKE) $(JOBS) CUDA=0 $(call level,$$level) build/portable/$$level/run_tests; \
	  echo "tests of $$level"; \
	  TRAIN_GPT_BINARY=./train_gpt TRAIN_GPT_CPU=$$level build/portable/$$level/run_tests --jobs=$(shell nproc) $(TEST_FLAGS); done

# `make lint` compiles choose_copy.cpp, too.
without-warnings: $(if $(filter x86_64,$(shell uname -m)),$(CHOICE))
-include $(CHOICE:.o=.d)

.PHONY: portable portable-test
