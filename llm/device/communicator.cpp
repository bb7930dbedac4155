#include "llm/device/communicator.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace llm {

Exchange& Communicator::prepare(int channel) {
  const auto c = static_cast<size_t>(channel);
  if (exchanges_.size() <= c) exchanges_.resize(c + 1);
  exchanges_[c].sends.clear(), exchanges_[c].receives.clear();
  return exchanges_[c];
}

void Communicator::start(int channel) {
  Exchange& exchange = exchanges_[static_cast<size_t>(channel)];
  for (const Message& m : exchange.sends) bytes_sent_ += m.peer == rank_ ? 0 : m.bytes;
  start(channel, exchange);
}

void Communicator::wait(int channel) {
  const auto begin = std::chrono::steady_clock::now();
  wait(channel, exchanges_[static_cast<size_t>(channel)]);
  seconds_waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void all_gather(Communicator& ranks, const void* mine, size_t bytes, void* all) {
  auto* const rows = static_cast<std::byte*>(all);
  const auto row = [&](int rank) { return rows + static_cast<size_t>(rank) * bytes; };
  std::memcpy(row(ranks.rank()), mine, bytes);
  Exchange& exchange = ranks.prepare(kHostChannel);
  for (int peer = 0; peer < ranks.size(); ++peer) {
    if (peer == ranks.rank()) continue;
    exchange.sends.push_back({peer, row(ranks.rank()), bytes});
    exchange.receives.push_back({peer, row(peer), bytes});
  }
  ranks.start(kHostChannel);
  ranks.wait(kHostChannel);
}

void broadcast(Communicator& ranks, int root, void* data, size_t bytes) {
  Exchange& exchange = ranks.prepare(kHostChannel);
  if (ranks.rank() != root) exchange.receives.push_back({root, data, bytes});
  for (int peer = 0; ranks.rank() == root && peer < ranks.size(); ++peer)
    if (peer != root) exchange.sends.push_back({peer, data, bytes});
  ranks.start(kHostChannel);
  ranks.wait(kHostChannel);
}

std::vector<std::string> all_gather(Communicator& ranks, const std::string& mine) {
  const auto count = static_cast<size_t>(ranks.size());
  std::vector<uint64_t> sizes(count);
  const uint64_t size = mine.size();
  all_gather(ranks, &size, sizeof size, sizes.data());
  const auto longest = static_cast<size_t>(*std::max_element(sizes.begin(), sizes.end()));
  std::string padded = mine, all(count * longest, '\0');
  padded.resize(longest);
  all_gather(ranks, padded.data(), longest, all.data());
  std::vector<std::string> texts;
  for (size_t r = 0; r < count; ++r) texts.push_back(all.substr(r * longest, static_cast<size_t>(sizes[r])));
  return texts;
}

bool any(Communicator& ranks, bool mine) {
  std::vector<char> all(static_cast<size_t>(ranks.size()));
  const char one = mine ? 1 : 0;
  all_gather(ranks, &one, 1, all.data());
  return std::count(all.begin(), all.end(), 1) > 0;
}

void barrier(Communicator& ranks) { any(ranks, false); }

}  // namespace llm
