#include "llm/serve/engine_thread.h"

#include <algorithm>

#include "llm/base/error.h"

namespace llm {

using Clock = std::chrono::steady_clock;

struct EngineThread::Ticket::Events {
  std::mutex mutex;
  std::condition_variable arrived;
  std::deque<EngineEvent> waiting;

  void push(EngineEvent event) {
    {
      const std::lock_guard lock(mutex);
      waiting.push_back(std::move(event));
    }
    arrived.notify_one();
  }
};

struct EngineThread::Job {
  struct Sequence {
    Engine::Id id = 0;
    bool ended = false;
    int64_t tokens = 0;  // new ones
    Clock::time_point first, last;
  };
  std::vector<Request> requests;  // until they are handed to the engine
  std::vector<Sequence> sequences;
  size_t running = 0;
  Clock::time_point arrival = Clock::now();
  const char* how = "stop";  // it ended
  std::shared_ptr<Ticket::Events> events;
};

namespace {
double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}
}  // namespace

EngineThread::EngineThread(Engine& engine, Metrics& metrics, int64_t most_waiting)
    : engine_(engine),
      metrics_(metrics),
      most_waiting_(most_waiting),
      statistics_(engine.statistics()),
      thread_([this] { run(); }) {}

EngineThread::~EngineThread() { stop(); }

void EngineThread::stop() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  arrived_.notify_one();
  if (thread_.joinable()) thread_.join();
}

EngineThread::Ticket::~Ticket() { cancel(SIZE_MAX); }

std::deque<EngineEvent> EngineThread::Ticket::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(events_->mutex);
  events_->arrived.wait_for(lock, timeout, [&] { return !events_->waiting.empty(); });
  return std::exchange(events_->waiting, {});
}

void EngineThread::Ticket::cancel(size_t sequence) { thread_.send({number_, nullptr, sequence}); }

std::unique_ptr<EngineThread::Ticket> EngineThread::submit(std::vector<Request> sequences) {
  auto job = std::make_unique<Job>();
  job->sequences.resize(sequences.size());
  job->running = sequences.size();
  job->requests = std::move(sequences);
  job->events = std::make_shared<Ticket::Events>();
  std::unique_ptr<Ticket> ticket(new Ticket(*this));
  ticket->events_ = job->events;
  {
    const std::lock_guard lock(mutex_);
    if (ends_ || statistics_.waiting + arriving_ >= most_waiting_) return nullptr;
    arriving_ += static_cast<int64_t>(job->sequences.size());
    ticket->number_ = next_++;
    messages_.push_back({ticket->number_, std::move(job)});
  }
  arrived_.notify_one();
  return ticket;
}

void EngineThread::send(Message message) {
  {
    const std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
  }
  arrived_.notify_one();
}

EngineStatistics EngineThread::statistics() const {
  const std::lock_guard lock(mutex_);
  EngineStatistics statistics = statistics_;
  statistics.waiting += arriving_;
  return statistics;
}

void EngineThread::run() {
  bool busy = false;
  for (;;) {
    std::vector<Message> messages;
    {
      std::unique_lock lock(mutex_);
      if (!busy) arrived_.wait(lock, [&] { return ends_ || !messages_.empty(); });
      if (ends_) break;
      messages.swap(messages_);
    }
    for (Message& message : messages) handle(message);
    try {
      busy = engine_.step();
    } catch (const std::exception& e) {
      // What a step cannot do, as where the GPU fails, is told to all who wait; the next requests try again.
      busy = false;
      for (auto& [number, job] : jobs_) {
        for (size_t i = 0; i < job->sequences.size(); ++i) {
          if (job->sequences[i].ended) continue;
          engine_.cancel(job->sequences[i].id);
          job->events->push({EngineEvent::Kind::failed, i, {}, Finish::error, e.what()});
          job->how = "error";
          job->sequences[i].ended = true;
        }
        metrics_.request_ended(job->how, seconds_between(job->arrival, Clock::now()));
      }
      jobs_.clear();
      ended_.clear();
    }
    for (const uint64_t number : ended_) jobs_.erase(number);
    ended_.clear();
    const std::lock_guard lock(mutex_);
    statistics_ = engine_.statistics();
    arriving_ = 0;
    for (const Message& message : messages_)
      if (message.submitted) arriving_ += static_cast<int64_t>(message.submitted->sequences.size());
  }
  for (auto& [number, job] : jobs_)
    for (size_t i = 0; i < job->sequences.size(); ++i)
      if (!job->sequences[i].ended) {
        engine_.cancel(job->sequences[i].id);
        job->events->push({EngineEvent::Kind::failed, i, {}, Finish::error, "the server shuts down"});
      }
}

void EngineThread::handle(Message& message) {
  if (message.submitted)
    start(message.job, std::move(message.submitted));
  else
    cancel(message.job, message.sequence);
}

void EngineThread::start(uint64_t number, std::unique_ptr<Job> owned) {
  Job* const job = (jobs_[number] = std::move(owned)).get();
  std::vector<Request> requests = std::move(job->requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    RequestCallbacks callbacks;
    const auto prompt = static_cast<int64_t>(requests[i].prompt.size());
    callbacks.on_token = [this, job, i, prompt](const TokenOutput& token) {
      Job::Sequence& sequence = job->sequences[i];
      if (token.position >= prompt) {
        sequence.last = Clock::now();
        if (sequence.tokens++ == 0) {
          sequence.first = sequence.last;
          metrics_.first_token_after(seconds_between(job->arrival, sequence.first));
        }
      }
      job->events->push({EngineEvent::Kind::token, i, token, Finish::stop, ""});
    };
    callbacks.on_finish = [this, job, i, number](Finish finish, const std::string& error) {
      if (finish != Finish::stop) job->how = finish == Finish::length ? "length" : "error";
      job->events->push(
          {finish == Finish::error ? EngineEvent::Kind::failed : EngineEvent::Kind::end, i, {}, finish, error});
      job->sequences[i].ended = true;
      end_sequence(*job);
      if (job->running == 0) ended_.push_back(number);
    };
    try {
      job->sequences[i].id = engine_.submit(std::move(requests[i]), std::move(callbacks));
    } catch (const std::exception& e) {
      for (size_t earlier = 0; earlier < i; ++earlier) engine_.cancel(job->sequences[earlier].id);
      job->events->push({EngineEvent::Kind::refused, i, {}, Finish::error, e.what()});
      metrics_.request_ended("refused", seconds_between(job->arrival, Clock::now()));
      jobs_.erase(number);
      return;
    }
  }
}

void EngineThread::cancel(uint64_t number, size_t sequence) {
  const auto found = jobs_.find(number);
  if (found == jobs_.end()) return;
  Job& job = *found->second;
  for (size_t i = 0; i < job.sequences.size(); ++i) {
    if (job.sequences[i].ended || (sequence != SIZE_MAX && sequence != i)) continue;
    engine_.cancel(job.sequences[i].id);
    job.sequences[i].ended = true;
    // A single sequence is given up when its text has come to a stop string.
    if (sequence == SIZE_MAX) job.how = "cancelled";
    end_sequence(job);
  }
  if (job.running == 0) jobs_.erase(found);
}

// Counts a sequence as ended, and with the last one the request.
void EngineThread::end_sequence(Job& job) {
  for (Job::Sequence& sequence : job.sequences)
    if (sequence.ended && sequence.tokens > 1) {
      metrics_.token_every(seconds_between(sequence.first, sequence.last) / static_cast<double>(sequence.tokens - 1));
      sequence.tokens = 0;
    }
  if (--job.running == 0) metrics_.request_ended(job.how, seconds_between(job.arrival, Clock::now()));
}

}  // namespace llm
