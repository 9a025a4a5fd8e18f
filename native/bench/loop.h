// One load on one thread: sends chains of requests when they are due, notes when what happened. Every time is
// CLOCK_MONOTONIC in nanoseconds. What to send, when, and what the notes mean is decided in src/farthing/bench.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <queue>
#include <string>
#include <string_view>
#include <vector>

#include "events.h"
#include "grpc.h"
#include "http1.h"

namespace bench {

// What became of a request, where it is not an HTTP status (mirrored in bench/records.py).
enum Failure : std::int32_t {
  kConnect = -1, kClosed = -2, kReset = -3, kTimeout = -4, kMalformed = -5, kStreamError = -6, kStreamCut = -7,
  kAbandoned = -8, kGrpc = -100  // kGrpc - code
};

enum class Wire : std::uint8_t { http, stream, grpc };

struct Load {
  std::string address;  // numeric
  int port = 0;
  Wire wire = Wire::http;
  std::vector<std::string_view> requests;       // as they go over the wire; gRPC: see grpc.h
  std::vector<std::string_view> heads;          // gRPC only: header block of each request
  std::vector<std::int32_t> chain_starts;       // chain c is requests [chain_starts[c], chain_starts[c + 1])
  std::vector<std::int32_t> order;              // chains in the order in which they start; then again from the front
  std::vector<std::int64_t> arrivals;           // open loop: when each chain is to start, from the start; else empty
  std::int64_t pause_ns = 0;                    // between an answer and the next request of its chain
  std::int64_t duration_ns = 0, timeout_ns = 0;
  std::int64_t requests_max = 0, events_max = 0;
  int connections = 1;                          // closed loop: so many busy; open loop: at most so many
  bool is_fed = false;                          // neither: requests are handed over with `feed` while it runs
};

struct Record {
  std::int64_t intended, sent, first, end;
  std::int32_t request, status, tokens, prompt_tokens, completion_tokens, cached_tokens;
  float lag_s, held_s;  // sent later than it could be; answer noticed before this, looked at only at `end`
};

struct Event {
  std::uint32_t record;
  std::int64_t at;
};

// Of a fed request: its first token is there (status 0), or it is over.
struct Told {
  std::int64_t ticket;
  std::int32_t status, tokens;
};

struct Spent {
  double wall_s = 0, cpu_s = 0, starved_s = 0;
  std::int64_t started = 0, connections_opened = 0, waited_for_connection = 0, events_lost = 0;
};

class Loop {
 public:
  explicit Loop(Load load);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  void run();
  void stop() { is_stopping_ = true; }

  // Of a load that is fed. From any thread: request `requests[i]` is to be sent now, as number `first + i`; and no more
  // will come. From one thread: turns the loop until there is something to tell; false when all that was fed is over.
  void feed(std::int64_t first, const std::vector<std::int32_t>& requests);
  void end_feed();
  bool serve(std::vector<Told>& told);

  std::vector<Record> records;
  std::vector<Event> events;
  std::vector<std::int64_t> tickets;            // of a load that is fed: which number each record was
  std::map<std::int32_t, std::string> samples;  // the beginning of the first failed answer of each status
  Spent spent;
  std::atomic<std::int64_t> sent{0}, done{0}, failed{0}, tokens{0}, in_flight{0};

 private:
  struct Connection {
    int fd = -1;
    bool is_connecting = false, is_busy = false, wants_write = false, is_free = false;
    std::int32_t request = 0, chain_end = 0;  // the request on its way, and where its chain ends
    std::size_t record = 0, written = 0;
    std::int64_t deadline = 0, ticket = 0;
    Answer answer;
    Events events;
    std::string body;  // of a failed answer, its beginning
    std::unique_ptr<GrpcConnection> grpc;
  };
  struct Start {
    std::int64_t intended;
    std::int32_t first, end;
    float lag_s = 0;  // how late the loop was when it was due
    std::int64_t ticket = 0;
  };
  struct Wake {
    std::int64_t at;
    int connection;
    bool operator>(const Wake& other) const { return at > other.at; }
  };

  void open();
  bool turn();
  void close_all();
  void start_due(std::int64_t now);
  void take_fed();
  void start(const Start& start, std::int64_t now);
  bool is_more_due() const;
  Start next_chain(std::int64_t intended);
  void begin(int which, std::int64_t intended, float lag_s, std::int64_t now);
  void lose(const Start& start, std::int32_t status, std::int64_t now);
  void give(const Start& start, int which, std::int64_t now);
  void next(int which, std::int64_t now);
  void connect(int which, std::int64_t now);
  void write(int which, std::int64_t now);
  void read(int which);
  void consume(int which, const char* data, std::size_t size, std::int64_t now);
  void token(Connection& c, std::int64_t now);
  void finish(int which, std::int32_t status, std::int64_t now, bool keeps_alive);
  void broke(int which, std::int32_t failure, std::int64_t now);
  void drop(Connection& c);
  void watch(int which, bool for_write);
  void wake_due(std::int64_t now);
  void expire(std::int64_t now);

  Load load_;
  int epoll_ = -1;
  std::vector<Connection> connections_;
  std::vector<int> free_;
  std::deque<Start> waiting_;
  std::priority_queue<Wake, std::vector<Wake>, std::greater<>> wakes_;
  std::vector<char> buffer_;
  std::size_t chains_started_ = 0;
  std::int64_t issued_ = 0, start_ = 0, end_ = 0, returned_ = 0, next_expiry_ = 0;
  int busy_ = 0;
  bool has_pwait2_ = true, is_opened_ = false;
  double cpu_before_s_ = 0, starved_before_s_ = 0;
  std::atomic<bool> is_stopping_{false};

  std::mutex feeding_;  // guards these four
  std::vector<Start> fed_;
  bool is_feed_over_ = false, is_waiting_ = false;
  int bell_ = -1;  // an eventfd: rung when something is fed while the loop waits
  std::vector<Told> told_;
};

std::int64_t now_ns();

}  // namespace bench
