// When each node of a step ran on each rank, and when messages were under way: a file for chrome://tracing or
// ui.perfetto.dev (the Trace Event Format of Chromium).
#pragma once
#include <string>
#include <vector>

#include "llm/device/communicator.h"
#include "llm/graph/program.h"
#include "llm/train/pipeline.h"

namespace llm {

// One rank's events as JSON objects, each followed by a comma: its nodes, and from the start of each exchange to the end
// of the wait for it. `times` are in seconds of this process's steady clock; the events' begin at `begin`.
std::string trace_events(const Graph& graph, const std::vector<NodeTime>& times, double begin, int rank);

// The same of the passes of a pipeline, as one lane: what lies between them is the stage's waiting.
std::string pass_events(const std::vector<Pipeline::PassTime>& passes, double begin, int rank);

// Rank 0 writes the events of all ranks. `ranks`: null where there is one.
void write_trace(const std::string& path, const std::string& events, Communicator* ranks);

}  // namespace llm
