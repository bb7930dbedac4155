// The CPU as a device, and the file of choices that products on a GPU are tuned by, which needs none.
#include <doctest/doctest.h>

#include <cstring>
#include <fstream>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/device/arena.h"
#include "llm/device/cpu.h"
#include "llm/device/gemm_choices.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;

TEST_CASE("device: the CPU's memory is zeros, of any size, and what is written is read") {
  ThreadTeam threads(1);
  CpuDevice cpu(threads);
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{5000}, (size_t{2} << 20) - 1, (size_t{5} << 20) + 3}) {
    const Arena arena(bytes, cpu);
    CHECK(arena.bytes() == bytes);
    CHECK(arena.on_host() == arena.data());
    CHECK(reinterpret_cast<size_t>(arena.data()) % 4096 == 0);
    if (bytes < 4) continue;
    int32_t value = 7, read = 1;
    arena.read(bytes - 4, &read, 4);
    CHECK(read == 0);
    arena.write(bytes - 4, &value, 4);
    arena.read(bytes - 4, &read, 4);
    CHECK(read == 7);
  }
}

TEST_CASE("device: on the CPU batches come in, results go out in their order, work runs when it is handed over") {
  ThreadTeam threads(1);
  CpuDevice device(threads);
  Device& cpu = device;
  CHECK(cpu.ahead() == 0);
  int32_t tokens = 0, targets = 0;
  const auto upload = cpu.new_upload(8);
  for (const int32_t batch : {1, 2, 3}) {
    const int32_t block[] = {batch, 10 * batch};
    std::memcpy(upload->slot(), block, sizeof block);
    upload->submit();
    upload->consume({{&tokens, 0, 4}, {&targets, 4, 4}});
    CHECK(tokens == batch);
    CHECK(targets == 10 * batch);
  }
  const auto download = cpu.new_download(4);
  const auto taken = [&] {
    int32_t value;
    std::memcpy(&value, download->wait(), 4);
    return value;
  };
  tokens = 5, download->submit({{&tokens, 0, 4}});
  tokens = 6, download->submit({{&tokens, 0, 4}});
  CHECK_THROWS_AS(download->submit({{&tokens, 0, 4}}), Error);
  tokens = 7;
  CHECK(taken() == 5);
  CHECK(taken() == 6);

  int runs = 0;
  const auto replay = cpu.new_replay();
  replay->prepare([&] { ++runs; });
  CHECK(runs == 0);
  for (int i = 1; i <= 3; ++i) {
    replay->run([&] { ++runs; });
    CHECK(runs == i);
  }
}

TEST_CASE("gemm choices: kept in a file that several runs share") {
  const Folder folder;
  const std::string path = folder / "gemm.txt";
  const auto key = [](int64_t m) {
    GemmChoices::Key k{};
    k[0] = m, k[21] = -1;
    return k;
  };
  const GemmChoices::Algorithm a = {1, 0xffffffffffffffff}, b = {2};
  GemmChoices ours, theirs, other;
  ours.keep(key(1), a);  // no file yet
  CHECK(ours.find(key(1)) == a);
  ours.remember(path, "one GPU");
  CHECK_FALSE(ours.find(key(1)).has_value());
  ours.keep(key(1), a);
  theirs.remember(path, "one GPU");
  CHECK(theirs.find(key(1)) == a);
  theirs.keep(key(2), b);
  CHECK_FALSE(ours.find(key(2)).has_value());
  ours.read_file();
  CHECK(ours.find(key(2)) == b);
  ours.keep(key(3), b);
  theirs.keep(key(4), b);  // what was found meanwhile stays in the file
  ours.remember(path, "one GPU");
  for (const int64_t m : {1, 2, 3, 4}) CHECK(ours.find(key(m)).has_value());

  other.remember(path, "another GPU");
  CHECK_FALSE(other.find(key(1)).has_value());
  std::ofstream(path, std::ios::app) << "1 2 three\n";
  CHECK_THROWS_WITH_AS(theirs.read_file(), doctest::Contains("line 6"), Error);
}
