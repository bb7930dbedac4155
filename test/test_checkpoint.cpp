// Checkpoints: what was saved is found again, bit for bit, and a kill, a full disk or a damaged file loses nothing
// else.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>

#include "llm/base/atomic_file.h"
#include "llm/base/error.h"
#include "llm/checkpoint/checkpoint.h"
#include "llm/device/communicator_threads.h"
#include "llm/model/huggingface.h"
#include "test/helpers.h"

using namespace llm;
using namespace test;
namespace fs = std::filesystem;

namespace {

ModelConfig small_config() {
  ModelConfig c;
  c.vocabulary = 17, c.context = 8, c.layers = 2, c.heads = 2, c.kv_heads = 1, c.channels = 8, c.head_size = 4;
  c.hidden = 12;
  return c;
}

// The value of every element of a parameter or moment at a step, which shows a checkpoint mixed from two steps.
float value_at(int64_t step, size_t index) { return static_cast<float>(step) + static_cast<float>(index) * 0x1p-10f; }

CheckpointContent content_at(int64_t step, double val_loss = std::nan(""), int64_t channels = 8) {
  CheckpointContent content;
  content.state.step = step, content.state.samples = 4 * step, content.state.tokens = 32 * step;
  content.state.seconds = 0.1 * static_cast<double>(step);
  content.state.val_loss = val_loss, content.state.best_val_loss = val_loss;
  content.state.settings_json = R"({"seed":18446744073709551615,"lr":0.0003,"data":"a \"b\""})";
  content.config = small_config();
  content.config.channels = channels;
  content.table = parameter_table(content.config);
  content.optimizer = optimizer_state(content.table, OptimizerKind::adamw);
  size_t largest = 0;
  for (const Parameter& p : content.table) largest = std::max(largest, static_cast<size_t>(p.shape.elements()));
  const auto staging = std::make_shared<std::vector<float>>(largest);
  content.parameter = [=](size_t i) {
    std::fill(staging->begin(), staging->end(), value_at(step, i));
    return staging->data();
  };
  content.optimizer_tensor = [=](size_t i) {
    std::fill(staging->begin(), staging->end(), value_at(step, 1000 + i));
    return staging->data();
  };
  content.tokenizer_json = "{\"tokenizer\":1}";
  content.end_tokens = 16;
  return content;
}

// Throws Error unless everything in the checkpoint belongs to its step.
void check_whole(const CheckpointInfo& info) {
  const ModelConfig config = read_config(info.path);
  const auto table = parameter_table(config);
  const auto moments = optimizer_state(table, OptimizerKind::adamw);
  const TrainerState state = read_trainer_state(info.path);
  if (state.step != info.step || state.tokens != 32 * info.step) fail("wrong state in ", info.path);
  const auto check = [&](const std::vector<std::vector<float>>& all, size_t first) {
    for (size_t i = 0; i < all.size(); ++i)
      for (float x : all[i])
        if (x != value_at(info.step, first + i)) fail("wrong value in ", info.path);
  };
  std::vector<std::vector<float>> weights(table.size()), state_tensors(moments.size());
  load_parameters(info.path, table, [&](size_t i) {
    weights[i].resize(static_cast<size_t>(table[i].shape.elements()));
    return weights[i].data();
  });
  load_optimizer(info.path, moments, [&](size_t i) {
    state_tensors[i].resize(static_cast<size_t>(moments[i].shape.elements()));
    return state_tensors[i].data();
  });
  check(weights, 0);
  check(state_tensors, 1000);
}

std::vector<int64_t> steps_of(const std::string& run) {
  std::vector<int64_t> steps;
  for (const CheckpointInfo& info : list_checkpoints(run)) {
    CHECK_NOTHROW(check_whole(info));
    steps.push_back(info.step);
  }
  return steps;
}

size_t entries(const std::string& directory) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

using Steps = std::vector<int64_t>;

}  // namespace

TEST_CASE("atomic files: the old content or the new, nothing else") {
  const Folder folder;
  const std::string path = folder / "file";
  write_file_atomically(path, "old");
  {
    AtomicFile file(path);
    file.write("half of the n");
    CHECK(read_file(path) == "old");
  }
  CHECK(read_file(path) == "old");
  CHECK(entries(folder.path) == 1);
  const std::string large(300'000, 'x');
  write_file_atomically(path, large);
  CHECK(read_file(path) == large);

  CHECK(has(error_of([&] { write_file_atomically(folder / "no/file", ""); }), "no/file: No such file or directory"));
  CHECK(has(error_of([&] { write_file_atomically(path + "/file", ""); }), "Not a directory"));
  fs::create_directory(folder / "directory");
  CHECK(has(error_of([&] { write_file_atomically(folder / "directory", ""); }), "directory: Is a directory"));
  CHECK(has(error_of([&] { read_file(folder / "directory"); }), "directory: Is a directory"));
  CHECK(has(error_of([&] { make_directories(path + "/d"); }), "Not a directory"));
  CHECK(has(error_of([&] { make_directories(path); }), "Not a directory"));
  CHECK(entries(folder.path) == 2);
}

TEST_CASE("atomic directories: replaced whole; leftovers go, but not those in use") {
  const Folder folder;
  for (const char* text : {"first", "second"}) {
    AtomicDirectory directory(folder.path, "d");
    write_file_atomically(directory.path() + "/" + text, text);
    directory.commit();
  }
  CHECK(read_file(folder / "d/second") == "second");
  CHECK(entries(folder / "d") == 1);
  CHECK(entries(folder.path) == 1);

  fs::create_directories(folder / ".tmp-d-1-0/deep");  // process 1 is running, but did not make this
  write_file_atomically(folder / ".tmp-file-1-0", "");
  {
    AtomicDirectory directory(folder.path, "d");
    AtomicFile file(folder / "file");
    remove_abandoned(folder.path);
    CHECK(entries(folder.path) == 3);
    CHECK(fs::exists(directory.path()));
  }
  CHECK(entries(folder.path) == 1);
  CHECK(read_file(folder / "d/second") == "second");
  remove_directory(folder.path, "d");
  remove_directory(folder.path, "d");
  CHECK(entries(folder.path) == 0);
}

TEST_CASE("checkpoints: saved and found again") {
  const Folder folder;
  const std::string run = folder / "run";
  CHECK(list_checkpoints(run).empty());
  auto content = content_at(5, 2.25);
  content.extra_files = {{"note.txt", "n"}};
  CHECK(save_checkpoint(run, content) == run + "/checkpoints/5");
  const std::string path = run + "/checkpoints/5";
  for (const char* name : {"model.safetensors", "optimizer.state", "config.json", "tokenizer.json",
                           "tokenizer_config.json", "generation_config.json", "trainer.json", "note.txt"})
    CHECK(fs::exists(path + "/" + name));
  CHECK(entries(path) == 8);
  CHECK(entries(run + "/checkpoints") == 1);

  const CheckpointInfo info = find_checkpoint(run);
  CHECK(info.path == path);
  CHECK(info.step == 5);
  CHECK(info.has_trainer_state);
  CHECK(info.skipped == "");
  check_whole(info);
  CHECK(find_checkpoint(path).step == 5);
  CHECK(read_config(path) == content.config);
  const TrainerState state = read_trainer_state(path);
  CHECK(state.samples == 20);
  CHECK(state.seconds == 0.1 * 5);
  CHECK(state.val_loss == 2.25);
  CHECK(state.best_val_loss == 2.25);
  CHECK(state.settings_json == content.state.settings_json);

  save_checkpoint(run, content_at(10));
  CHECK(std::isnan(read_trainer_state(run + "/checkpoints/10").best_val_loss));
  CHECK(find_checkpoint(run).step == 10);
  CHECK(find_checkpoint(run, Which::best).step == 5);
  save_checkpoint(run, content_at(10));  // again, in place of the first
  CHECK(steps_of(run) == Steps{5, 10});

  // Without the trainer's state a checkpoint is a plain Hugging Face directory.
  fs::copy(path, folder / "hf");
  fs::remove(folder / "hf/trainer.json");
  fs::remove(folder / "hf/optimizer.state");
  CHECK(find_checkpoint(folder / "hf").step == -1);
  CHECK(!find_checkpoint(folder / "hf").has_trainer_state);
}

TEST_CASE(
    "checkpoints: ranks write the pieces that they have, or the first one everything, and the files are the same") {
  const Folder folder;
  const std::string alone = save_checkpoint(folder / "alone", content_at(5));
  const auto save = [&](const std::string& run, bool together) {
    ThreadRanks(3).run([&](Communicator& ranks) {
      CheckpointContent content = content_at(5);
      // Of every tensor rank 2 has the first element, rank 0 the rest but for the last, rank 1 that one.
      const auto piece_of = [&](const float* all, int64_t elements) {
        const int64_t bounds[] = {1, elements - 1, elements, 0, 1};
        const int rank = ranks.rank();
        const int64_t first = rank == 2 ? 0 : bounds[rank], end = rank == 2 ? 1 : bounds[rank + 1];
        return std::vector<TensorPiece>{{first, all + first, end - first}};
      };
      if (together) {
        content.parameter_pieces = [&](size_t i) {
          return piece_of(content.parameter(i), content.table[i].shape.elements());
        };
        content.optimizer_pieces = [&](size_t i) {
          return piece_of(content.optimizer_tensor(i), content.optimizer[i].shape.elements());
        };
      }
      save_checkpoint(run, content, 0, &ranks);
    });
  };
  for (const bool together : {false, true}) {
    CAPTURE(together);
    const std::string run = folder / (together ? "together" : "first");
    save(run, together);
    CHECK(entries(run + "/checkpoints") == 1);
    CHECK(steps_of(run) == Steps{5});
    for (const char* file : {"model.safetensors", "optimizer.state", "config.json", "trainer.json"})
      CHECK(read_file(run + "/checkpoints/5/" + file) == read_file(alone + "/" + file));
  }
  // One that cannot write what it has leaves nothing behind.
  const std::string run = folder / "failed";
  const std::string error = error_of([&] {
    ThreadRanks(2).run([&](Communicator& ranks) {
      CheckpointContent content = content_at(5);
      content.parameter_pieces = [&](size_t) -> std::vector<TensorPiece> {
        if (ranks.rank() == 1) fail("no memory for it");
        return {};
      };
      content.optimizer_pieces = [](size_t) { return std::vector<TensorPiece>{}; };
      save_checkpoint(run, content, 0, &ranks);
    });
  });
  CHECK(has(error, "no memory for it"));
  CHECK(entries(run + "/checkpoints") == 0);
}

TEST_CASE("checkpoints: one of an earlier version, whose optimizer state had the suffix of weights, is read") {
  const Folder folder;
  const auto content = content_at(5);
  const std::string path = save_checkpoint(folder.path, content);
  fs::rename(path + "/optimizer.state", path + "/optimizer.safetensors");
  CHECK_THROWS_AS(find_checkpoint(path), Error);
  std::string trainer = read_file(path + "/trainer.json");
  trainer.replace(trainer.find("optimizer.state"), 15, "optimizer.safetensors");
  write_file_atomically(path + "/trainer.json", trainer);
  check_whole(find_checkpoint(path));
}

TEST_CASE("checkpoints: floats are kept bit for bit") {
  const Folder folder;
  auto content = content_at(1);
  std::vector<float> odd(2048), finite(2048);  // weights that are not finite are refused
  for (size_t i = 0; i < odd.size(); ++i) {
    const auto bits = static_cast<uint32_t>(i * 2097143 + 0x7f800001);
    odd[i] = std::bit_cast<float>(bits);
    finite[i] = std::isfinite(odd[i]) ? odd[i] : std::bit_cast<float>(bits ^ 0x40000000);
  }
  content.parameter = [&](size_t) { return finite.data(); };
  content.optimizer_tensor = [&](size_t) { return odd.data(); };
  const std::string path = save_checkpoint(folder.path, content);
  std::vector<std::vector<float>> loaded;
  const auto receive = [&](size_t) { return loaded.emplace_back(2048, 0.f).data(); };
  load_parameters(path, content.table, receive);
  load_optimizer(path, content.optimizer, receive);
  for (size_t i = 0; i < loaded.size(); ++i) {
    const Shape& shape =
        i < content.table.size() ? content.table[i].shape : content.optimizer[i - content.table.size()].shape;
    const float* const written = (i < content.table.size() ? finite : odd).data();
    CHECK(std::memcmp(loaded[i].data(), written, static_cast<size_t>(shape.elements()) * 4) == 0);
  }
}

TEST_CASE("checkpoints: the newest and the best are kept") {
  const Folder folder;
  const double losses[] = {3.0, 2.0, 2.5, std::nan(""), 2.0, 2.7, 2.8};
  const Steps kept[] = {{10}, {10, 20}, {20, 30}, {20, 30, 40}, {40, 50}, {50, 60}, {50, 60, 70}};
  for (int i = 0; i < 7; ++i) {
    CAPTURE(i);
    save_checkpoint(folder.path, content_at(10 * (i + 1), losses[i]), 2);
    CHECK(steps_of(folder.path) == kept[i]);
  }
  CHECK(find_checkpoint(folder.path, Which::best).step == 50);
}

TEST_CASE("checkpoints: what is damaged is passed over and named") {
  const Folder folder;
  const std::string run = folder.path, parent = run + "/checkpoints/";
  for (int step : {1, 2, 3, 4, 5}) save_checkpoint(run, content_at(step));
  fs::resize_file(parent + "5/model.safetensors", 1000);
  fs::remove(parent + "4/trainer.json");
  fs::rename(parent + "3", parent + "30");
  fs::remove(parent + "2/optimizer.state");
  fs::create_directory(parent + "notes");
  CHECK(steps_of(run) == Steps{1});
  const CheckpointInfo info = find_checkpoint(run);
  CHECK(info.step == 1);
  CHECK(has(info.skipped, "5/model.safetensors: 1000 bytes of the "));
  CHECK(has(info.skipped, "4/trainer.json: No such file"));
  CHECK(has(info.skipped, "30: its trainer.json says step 3"));
  CHECK(has(info.skipped, "2/optimizer.state: No such file"));
  CHECK(has(error_of([&] { find_checkpoint(parent + "5"); }), "5/model.safetensors: 1000 bytes of the "));
  save_checkpoint(run, content_at(6), 1);  // damaged checkpoints are not removed
  CHECK(entries(parent) == 6);
  CHECK(find_checkpoint(run).skipped.find("5/model") == std::string::npos);

  write_file_atomically(parent + "6/trainer.json", "{\"step\":\n6}");
  CHECK(has(error_of([&] { find_checkpoint(run); }), "no whole checkpoint in this run: "));
  CHECK(has(error_of([&] { read_trainer_state(parent + "6"); }), "6/trainer.json: not a checkpoint's"));
  CHECK(has(error_of([&] { find_checkpoint(folder / "absent"); }), "absent: "));
  CHECK(has(error_of([&] { find_checkpoint(parent + "6/config.json"); }), "not a directory"));
  CHECK(has(error_of([&] { find_checkpoint(parent + "notes"); }), "notes: no model here"));
}

TEST_CASE("checkpoints: another model's or optimizer's state is refused") {
  const Folder folder;
  const std::string path = save_checkpoint(folder.path, content_at(1));
  const auto load = [&](const std::vector<StateTensor>& tensors) {
    return error_of([&] { load_optimizer(path, tensors, [](size_t) -> float* { throw Error("called"); }); });
  };
  auto tensors = content_at(1).optimizer;
  CHECK(load(tensors) == "called");
  tensors[3].shape = {8, 1};
  CHECK(has(load(tensors), "layers.0.attention_norm.weight.second_moment is not F32 of shape (8, 1)"));
  tensors[3].name = "momentum";
  CHECK(has(load(tensors), "momentum is missing"));
  tensors.erase(tensors.begin() + 3);
  CHECK(has(load(tensors), "\"layers.0.attention_norm.weight.second_moment\" is in the file, too"));
  CHECK(has(error_of([&] { load_parameters(path, content_at(1, 0, 16).table, nullptr); }), "wrong shapes"));
}

TEST_CASE("checkpoints: a full disk is one error and costs no earlier checkpoint") {
  const Folder folder;
  save_checkpoint(folder.path, content_at(1));
  int pipes[2];
  REQUIRE(::pipe(pipes) == 0);
  // A limit on the size of files stands for a full disk, in a process of its own: writes fall short, then fail.
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{3000, 3000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    std::string message = "saved";
    try {
      save_checkpoint(folder.path, content_at(2));
    } catch (const Error& e) {
      message = e.what();
    }
    ::_exit(::write(pipes[1], message.data(), message.size()) == static_cast<ssize_t>(message.size()) ? 0 : 1);
  }
  ::close(pipes[1]);
  char text[1000] = {};
  CHECK(::read(pipes[0], text, sizeof text - 1) > 0);
  ::close(pipes[0]);
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child);
  CAPTURE(std::string(text));
  CHECK(has(text, "/checkpoints/2 was not saved (earlier ones are as they were): cannot write "));
  CHECK(has(text, "model.safetensors: File too large"));
  CHECK(steps_of(folder.path) == Steps{1});
  CHECK(entries(folder / "checkpoints") == 1);
}

TEST_CASE("checkpoints: a directory that cannot be written is one error") {
  const Folder folder;
  write_file_atomically(folder / "file", "");
  CHECK(has(error_of([&] { save_checkpoint(folder / "file", content_at(1)); }), "Not a directory"));
  if (::geteuid() == 0) return;  // root may write anywhere
  save_checkpoint(folder.path, content_at(1));
  fs::permissions(folder / "checkpoints", fs::perms::owner_read | fs::perms::owner_exec);
  CHECK(has(error_of([&] { save_checkpoint(folder.path, content_at(2)); }), "Permission denied"));
  CHECK(steps_of(folder.path) == Steps{1});
  fs::permissions(folder / "checkpoints", fs::perms::none);
  CHECK(has(error_of([&] { find_checkpoint(folder.path); }), "Permission denied"));
  fs::permissions(folder / "checkpoints", fs::perms::owner_all);
}

TEST_CASE("checkpoints: killed at any moment, all that are listed are whole and none is lost") {
  const Folder folder;
  save_checkpoint(folder.path, content_at(1, 1.0), 2);  // the best one, which is never removed
  int64_t newest = 1;
  for (int kill = 0; kill < 20; ++kill) {
    CAPTURE(kill);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        // Sometimes a step that is there is saved again, as when a run continues from an earlier checkpoint.
        for (int64_t step = std::max<int64_t>(2, newest + kill % 2);; ++step)
          save_checkpoint(folder.path, content_at(step, 2.0), 2);
      } catch (...) {
        ::_exit(1);
      }
    }
    ::usleep(static_cast<useconds_t>(5'000 + 7'919 * kill % 60'000));
    ::kill(child, SIGKILL);
    int status = 0;
    CHECK(::waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status));
    const Steps steps = steps_of(folder.path);
    REQUIRE(steps.size() >= (newest == 1 ? 1 : 2));
    CHECK(steps.size() <= 4);
    CHECK(steps.front() == 1);
    CHECK(steps.back() >= newest);
    newest = steps.back();
  }
  for (int i : {1, 2}) save_checkpoint(folder.path, content_at(newest + i, 2.0), 2);
  CHECK(entries(folder / "checkpoints") == 3);  // no leftovers
}
