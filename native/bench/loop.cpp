#include "loop.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdexcept>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace bench {
namespace {

constexpr std::size_t kBufferBytes = 1 << 18;
constexpr std::int64_t kSpinNs = 20'000;             // nearer than this, waiting in the kernel would come too late
constexpr std::int64_t kExpiryEveryNs = 50'000'000;  // how often calls out of time are looked for
constexpr std::int64_t kReconnectAfterNs = 20'000'000;
constexpr int kConnectingMax = 256;                  // at once, so that listeners' backlogs need not be deep
constexpr std::size_t kSamplesMax = 16;
constexpr std::uint32_t kBell = UINT32_MAX;

double cpu_s() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Time this thread could have run and was not let: the second figure of schedstat.
double starved_s() {
  FILE* file = std::fopen("/proc/thread-self/schedstat", "r");
  if (!file) return 0;
  unsigned long long ran = 0, waited = 0;
  const int found = std::fscanf(file, "%llu %llu", &ran, &waited);
  std::fclose(file);
  return found == 2 ? static_cast<double>(waited) * 1e-9 : 0;
}

}  // namespace

std::int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

Loop::Loop(Load load) : load_(std::move(load)), buffer_(kBufferBytes) {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_ < 0) throw std::runtime_error("epoll_create1: " + std::string(std::strerror(errno)));
  if (load_.is_fed) {
    bell_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    epoll_event wanted{};
    wanted.events = EPOLLIN;
    wanted.data.u32 = kBell;
    if (bell_ < 0 || epoll_ctl(epoll_, EPOLL_CTL_ADD, bell_, &wanted) != 0) throw std::runtime_error("eventfd: " + std::string(std::strerror(errno)));
  }
  connections_.resize(static_cast<std::size_t>(load_.connections));
  records.reserve(static_cast<std::size_t>(std::min<std::int64_t>(load_.requests_max, 1 << 20)));
}

Loop::~Loop() {
  for (Connection& c : connections_) drop(c);
  if (bell_ >= 0) close(bell_);
  if (epoll_ >= 0) close(epoll_);
}

bool Loop::is_more_due() const {
  return chains_started_ < load_.arrivals.size() && load_.arrivals[chains_started_] < load_.duration_ns;
}

Loop::Start Loop::next_chain(std::int64_t intended) {
  const std::int32_t chain = load_.order[chains_started_++ % load_.order.size()];
  return {intended, load_.chain_starts[chain], load_.chain_starts[chain + 1]};
}

void Loop::run() {
  open();
  while (turn()) {}
  close_all();
}

void Loop::open() {
  is_opened_ = true;
  prctl(PR_SET_TIMERSLACK, 1UL);
  cpu_before_s_ = cpu_s();
  starved_before_s_ = starved_s();
  start_ = now_ns();
  end_ = start_ + load_.duration_ns;
  spent.started = start_;
  next_expiry_ = start_ + kExpiryEveryNs;
  if (load_.is_fed || !load_.arrivals.empty())
    for (int i = load_.connections; i-- > 0;) { free_.push_back(i); connections_[static_cast<std::size_t>(i)].is_free = true; }
  else
    for (int i = 0; i < load_.connections; ++i) wakes_.push({start_ + i / kConnectingMax * 2'000'000, i});
  returned_ = start_;
}

// Starts what is due, waits for the next moment or event, and reads what came. False when the load is over.
bool Loop::turn() {
  const bool is_open = !load_.arrivals.empty();
  std::int64_t now = now_ns();
  if (is_stopping_) return false;
  // Of an open load all that were due within its time are sent, however far behind this loop is: what it leaves out would
  // be those that had to wait.
  bool is_issuing = issued_ < load_.requests_max && (is_open ? is_more_due() : now < end_);
  if (load_.is_fed) {
    take_fed();
    const std::lock_guard<std::mutex> guard(feeding_);
    is_issuing = !is_feed_over_ || !fed_.empty();
  }
  if (!is_issuing && !busy_ && waiting_.empty()) {
    // Turns of chains that rest are not waited for once the time is up.
    if (load_.is_fed || now >= end_ || issued_ >= load_.requests_max || wakes_.empty()) return false;
  }
  if (is_open && is_issuing) start_due(now);
  wake_due(now);
  if (now >= next_expiry_) {
    expire(now);
    next_expiry_ = now + kExpiryEveryNs;
  }
  std::int64_t until = next_expiry_;
  if (is_open && is_issuing && chains_started_ < load_.arrivals.size())
    until = std::min(until, start_ + load_.arrivals[chains_started_]);
  if (!wakes_.empty()) until = std::min(until, wakes_.top().at);
  if (is_issuing) until = std::min(until, end_);
  if (load_.is_fed) {
    const std::lock_guard<std::mutex> guard(feeding_);
    if (!fed_.empty() || !told_.empty()) until = 0;
    is_waiting_ = true;
  }
  epoll_event found[256];
  const std::int64_t left = until - now_ns();
  int count;
  if (left <= kSpinNs || !has_pwait2_) {
    count = epoll_wait(epoll_, found, 256, left <= kSpinNs ? 0 : static_cast<int>(left / 1'000'000));
  } else {
    const timespec timeout{left / 1'000'000'000, left % 1'000'000'000};
    count = static_cast<int>(syscall(SYS_epoll_pwait2, epoll_, found, 256, &timeout, nullptr, 0));
    if (count < 0 && errno == ENOSYS) has_pwait2_ = false;
  }
  returned_ = now_ns();
  if (load_.is_fed) {
    const std::lock_guard<std::mutex> guard(feeding_);
    is_waiting_ = false;
  }
  for (int i = 0; i < count; ++i) {
    if (found[i].data.u32 == kBell) {
      std::uint64_t rung;
      if (::read(bell_, &rung, sizeof rung) < 0 && errno != EAGAIN) throw std::runtime_error("eventfd: " + std::string(std::strerror(errno)));
      continue;
    }
    const int which = static_cast<int>(found[i].data.u32);
    Connection& c = connections_[static_cast<std::size_t>(which)];
    if (c.fd < 0) continue;
    if (c.is_connecting && found[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
      int error = 0;
      socklen_t size = sizeof error;
      getsockopt(c.fd, SOL_SOCKET, SO_ERROR, &error, &size);
      if (error) { broke(which, kConnect, now_ns()); continue; }
      c.is_connecting = false;
      write(which, now_ns());
    } else if (c.wants_write && found[i].events & EPOLLOUT) {
      write(which, now_ns());
    }
    if (c.fd >= 0 && found[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP)) read(which);
    // Arrivals do not wait until all answers of this turn are read.
    if (is_open && !is_stopping_ && (i & 15) == 15) start_due(now_ns());
  }
  return true;
}

void Loop::close_all() {
  const std::int64_t now = now_ns();
  for (int i = 0; i < load_.connections; ++i)
    if (connections_[static_cast<std::size_t>(i)].is_busy) finish(i, kAbandoned, now, false);
  for (; !waiting_.empty(); waiting_.pop_front()) lose(waiting_.front(), kAbandoned, now);  // meant to be sent, never could be
  spent.wall_s = static_cast<double>(now - start_) * 1e-9;
  spent.cpu_s = cpu_s() - cpu_before_s_;
  spent.starved_s = starved_s() - starved_before_s_;
}

void Loop::lose(const Start& start, std::int32_t status, std::int64_t now) {
  records.push_back({start.intended, now, 0, now, start.first, status, 0, -1, -1, -1, 0, 0});
  if (load_.is_fed) {
    tickets.push_back(start.ticket);
    told_.push_back({start.ticket, status, 0});
  }
}

void Loop::feed(std::int64_t first, const std::vector<std::int32_t>& requests) {
  const std::int64_t now = now_ns();
  bool is_waiting;
  {
    const std::lock_guard<std::mutex> guard(feeding_);
    for (const std::int32_t request : requests) fed_.push_back({now, request, request + 1, 0, first++});
    is_waiting = is_waiting_;
  }
  const std::uint64_t once = 1;
  if (is_waiting && ::write(bell_, &once, sizeof once) < 0 && errno != EAGAIN) throw std::runtime_error("eventfd: " + std::string(std::strerror(errno)));
}

void Loop::end_feed() {
  {
    const std::lock_guard<std::mutex> guard(feeding_);
    is_feed_over_ = true;
  }
  const std::uint64_t once = 1;
  if (::write(bell_, &once, sizeof once) < 0) return;  // it is rung already
}

bool Loop::serve(std::vector<Told>& told) {
  if (!is_opened_) open();
  while (told_.empty() && turn()) {}
  told.swap(told_);
  told_.clear();
  if (!told.empty()) return true;
  close_all();
  return false;
}

void Loop::take_fed() {
  std::vector<Start> fed;
  {
    const std::lock_guard<std::mutex> guard(feeding_);
    if (fed_.empty()) return;
    fed.swap(fed_);
  }
  for (Start& one : fed) {
    ++issued_;
    const std::int64_t now = now_ns();
    one.lag_s = static_cast<float>(now - one.intended) * 1e-9f;
    start(one, now);
  }
}

void Loop::start_due(std::int64_t now) {
  while (chains_started_ < load_.arrivals.size() && issued_ < load_.requests_max) {
    const std::int64_t due = start_ + load_.arrivals[chains_started_];
    if (due > now || due >= end_) return;
    Start next = next_chain(due);
    next.lag_s = static_cast<float>(now - due) * 1e-9f;
    ++issued_;
    start(next, now);
    now = now_ns();
  }
}

// On a free connection, or when one is free.
void Loop::start(const Start& start, std::int64_t now) {
  if (free_.empty()) {
    ++spent.waited_for_connection;
    waiting_.push_back(start);
    return;
  }
  const int which = free_.back();
  free_.pop_back();
  connections_[static_cast<std::size_t>(which)].is_free = false;
  give(start, which, now);
}

void Loop::give(const Start& start, int which, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  c.request = start.first;
  c.chain_end = start.end;
  c.ticket = start.ticket;
  begin(which, start.intended, start.lag_s, now);
}

// A request is due: it is noted, and leaves now or as soon as its connection stands.
void Loop::begin(int which, std::int64_t intended, float lag_s, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  c.record = records.size();
  records.push_back({intended, now, 0, 0, c.request, 0, 0, -1, -1, -1, lag_s, 0});
  if (load_.is_fed) tickets.push_back(c.ticket);
  c.is_busy = true;
  c.written = 0;
  c.deadline = intended + load_.timeout_ns;  // a wait for a connection is part of a client's patience
  c.answer.reset();
  c.events.reset();
  c.body.clear();
  ++busy_;
  ++sent;
  in_flight = busy_;
  if (c.grpc && c.grpc->is_spent()) drop(c);
  if (c.fd < 0) connect(which, now);
  if (c.fd < 0) return;  // refused at once
  if (c.grpc) c.grpc->begin(load_.heads[static_cast<std::size_t>(c.request)], load_.requests[static_cast<std::size_t>(c.request)]);
  if (!c.is_connecting) write(which, now);
}

// The answer is there, or there will be none. What comes next on this connection is decided here.
void Loop::finish(int which, std::int32_t status, std::int64_t now, bool keeps_alive) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  Record& record = records[c.record];
  record.end = now;
  record.status = status;
  record.held_s = static_cast<float>(now - returned_) * 1e-9f;
  c.is_busy = false;
  --busy_;
  in_flight = busy_;
  const bool is_good = status >= 200 && status < 300;
  ++(is_good ? done : failed);
  if (load_.is_fed) told_.push_back({c.ticket, status, std::max(record.tokens, record.completion_tokens)});
  if (!is_good && status != kAbandoned && (samples.size() < kSamplesMax || samples.count(status))) samples.emplace(status, c.body);
  if (!keeps_alive) drop(c);
  if (status == kAbandoned) return;
  if (!is_good) c.request = c.chain_end;  // a conversation whose turn failed ends
  else ++c.request;
  if (c.request < c.chain_end) {
    if (load_.pause_ns > 0) { wakes_.push({now + load_.pause_ns, which}); return; }
    next(which, now);
    return;
  }
  // A server that refuses is asked again soon, not as fast as this loop can.
  if (status == kConnect || status == kClosed || status == kReset) wakes_.push({now + kReconnectAfterNs, which});
  else next(which, now);
}

// The next request of this connection's chain, or another chain: one that waits, or in a closed loop a new one.
void Loop::next(int which, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  const bool is_time = now < end_ && issued_ < load_.requests_max;
  if (c.request < c.chain_end && is_time) {
    ++issued_;
    begin(which, now, 0, now);
    return;
  }
  c.request = c.chain_end;
  if (load_.arrivals.empty() && !load_.is_fed) {
    if (!is_time) return;
    ++issued_;
    give(next_chain(now), which, now);
  } else if (!waiting_.empty()) {
    const Start start = waiting_.front();
    waiting_.pop_front();
    give(start, which, now);
  } else if (!c.is_free) {
    c.is_free = true;
    free_.push_back(which);
  }
}

void Loop::broke(int which, std::int32_t failure, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  drop(c);
  if (c.is_busy) finish(which, failure, now, false);
}

void Loop::wake_due(std::int64_t now) {
  while (!wakes_.empty() && wakes_.top().at <= now) {
    const int which = wakes_.top().connection;
    wakes_.pop();
    if (!connections_[static_cast<std::size_t>(which)].is_busy) next(which, now);
  }
}

void Loop::expire(std::int64_t now) {
  // Those that never got a connection are as lost as those that never got an answer.
  for (; !waiting_.empty() && waiting_.front().intended + load_.timeout_ns <= now; waiting_.pop_front()) {
    lose(waiting_.front(), kTimeout, now);
    ++failed;
  }
  for (int i = 0; i < load_.connections; ++i)
    if (connections_[static_cast<std::size_t>(i)].is_busy && connections_[static_cast<std::size_t>(i)].deadline <= now) broke(i, kTimeout, now);
}

}  // namespace bench
