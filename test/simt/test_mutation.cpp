// Would the tests of the CUDA kernels see a mistake? Each barrier, wait, fence and bounds test that the ops' kernels
// meet is left out once, and the tests run again, in several orders of threads: something must go wrong. The
// environment variable MUTANTS prints every outcome.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <map>

#include "test/cuda_check.h"
#include "test/simt/bed.h"
#include "test/simt/child.h"

namespace {

using namespace llm;
using namespace llm::simt;
using reference::CudaCheck;

// Places that may be left out without a change that a test could see, by the text of their line.
struct Exception {
  const char *file, *text;
};
constexpr Exception kExceptions[] = {
    // Without it, rows behind the last token are copies of the last row instead of zeros: their scores are masked, and
    // their results are not stored.
    {"flash_attention_cuda.h", "valid = simt::in_bounds(first + row <"},
    // The warpgroups take turns for speed only: none reads what another writes.
    {"_hopper.cu", "if constexpr (Tiling::kTurns) simt::meet(kTurn + consumer, 2 * kWarpgroup);"},
};

const char* name_of(bed::Kind kind) {
  switch (kind) {
    case bed::Kind::barrier: return "__syncthreads";
    case bed::Kind::warp_barrier: return "__syncwarp";
    case bed::Kind::copy_wait: return "copy_wait";
    case bed::Kind::in_bounds: return "in_bounds";
    case bed::Kind::phase: return "wait";
    case bed::Kind::fence: return "fence";
    case bed::Kind::expected_bytes: return "expected bytes";
    case bed::Kind::none: break;
  }
  return "?";
}

std::string line_of(const bed::Site& site) {
  std::ifstream file(site.file);
  std::string line;
  for (int i = 0; i < site.line && std::getline(file, line);) ++i;
  return line.substr(std::min(line.find_first_not_of(' '), line.size()));
}

bool is_exception(const bed::Site& site) {
  return std::any_of(std::begin(kExceptions), std::end(kExceptions), [&](const Exception& e) {
    return std::string(site.file).ends_with(e.file) && line_of(site).find(e.text) != std::string::npos;
  });
}

struct Mutant {
  bed::Site site;
  std::vector<std::pair<double, const CudaCheck*>> checks;  // (seconds that it takes, a check that meets the site)
};

// What goes wrong without the site, by the quickest checks first; empty: nothing.
std::string first_complaint(const Mutant& mutant, CudaDevice& device) {
  bed::disable(mutant.site);
  for (const bed::Settings& settings : {bed::Settings{.order = bed::Order::ascending},
                                        {.order = bed::Order::descending},
                                        {.order = bed::Order::random, .seed = 11}}) {
    bed::settings() = settings;
    for (auto& [seconds, check] : mutant.checks)
      if (std::string wrong = check->run(device, false); !wrong.empty()) return wrong;
  }
  return "";
}

}  // namespace

TEST_CASE("simt mutation: barriers, waits and bounds tests of the ops' kernels, each left out once") {
  // The bed's own watch over accesses sees most mistakes. AddressSanitizer's build does without it, and would take too
  // long.
  if (!bed::watches_accesses()) return;
  using Clock = std::chrono::steady_clock;
  ThreadTeam threads(1);
  CudaDevice device(threads);
  std::vector<CudaCheck> checks;
  reference::for_each_cuda_check([&](const CudaCheck& check) {
    if (check.missing().empty()) checks.push_back(check);
  });
  std::map<std::string, Mutant> by_place;
  for (const CudaCheck& check : checks) {
    bed::watch_sites(true);
    const auto start = Clock::now();
    try {
      if (!check.run(device, false).empty()) continue;
    } catch (const Error&) {
      continue;  // the check fails without a mutation, which test_cuda_ops.cpp reports
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    for (const bed::Site& site : bed::watched_sites()) {
      Mutant& mutant = by_place[site.text() + name_of(site.kind)];
      static std::set<std::string> files;
      mutant.site = {files.insert(site.file).first->c_str(), site.line, site.kind};
      mutant.checks.emplace_back(seconds, &check);
    }
  }
  bed::watch_sites(false);

  std::vector<std::function<std::string()>> works;
  std::vector<const Mutant*> mutants;
  for (auto& [place, mutant] : by_place) {
    std::sort(mutant.checks.begin(), mutant.checks.end());
    mutants.push_back(&mutant);
    works.push_back([&device, &mutant] { return first_complaint(mutant, device); });
  }
  const std::vector<std::string> outcomes = bed::outcomes_of(works, 60);
  bed::disable({nullptr, 0});

  size_t caught = 0, counted = 0;
  for (size_t i = 0; i < mutants.size(); ++i) {
    const bed::Site& site = mutants[i]->site;
    if (std::getenv("MUTANTS")) std::cout << site.text() << ": " << name_of(site.kind) << ": " << outcomes[i] << "\n";
    if (outcomes[i].empty() && is_exception(site)) continue;
    ++counted;
    caught += !outcomes[i].empty();
    if (outcomes[i].empty())
      std::cout << "mutation: not seen: " << site.text() << ": " << name_of(site.kind) << " left out: " << line_of(site)
                << "\n";
  }
  std::cout << "mutation: " << caught << " of " << counted << " seen\n";
  CHECK(static_cast<double>(caught) >= 0.95 * static_cast<double>(counted));
}
