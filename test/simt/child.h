// Runs work that may crash or never end in a process of its own.
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace llm::simt::bed {

// What `work` returns, or the message of the Error that it throws; "crash" when the process died otherwise, "time" when
// it took more than `seconds`.
std::string outcome_of(const std::function<std::string()>& work, int seconds);
// The outcomes of many, run as many at a time as the machine has processors.
std::vector<std::string> outcomes_of(const std::vector<std::function<std::string()>>& works, int seconds);

}  // namespace llm::simt::bed
