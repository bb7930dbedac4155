// The test binary's main(): doctest's own. `make test` builds and runs it; `--help` lists its options.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
