#include "loop.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdexcept>
#include <sys/epoll.h>
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
constexpr std::size_t kSampleBytes = 1 << 10, kSamplesMax = 16;
constexpr std::int64_t kNever = INT64_MAX;

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
  connections_.resize(static_cast<std::size_t>(load_.connections));
  records.reserve(static_cast<std::size_t>(std::min<std::int64_t>(load_.requests_max, 1 << 20)));
}

Loop::~Loop() {
  for (Connection& c : connections_) drop(c);
  if (epoll_ >= 0) close(epoll_);
}

bool Loop::has_more_chains() const {
  return load_.arrivals.empty() || chains_started_ < load_.arrivals.size();
}

Loop::Start Loop::next_chain(std::int64_t intended) {
  const std::int32_t chain = load_.order[chains_started_++ % load_.order.size()];
  return {intended, load_.chain_starts[chain], load_.chain_starts[chain + 1]};
}

void Loop::run() {
  prctl(PR_SET_TIMERSLACK, 1UL);
  const double cpu = cpu_s(), starved = starved_s();
  start_ = now_ns();
  end_ = start_ + load_.duration_ns;
  spent.started = start_;
  next_expiry_ = start_ + kExpiryEveryNs;
  const bool is_open = !load_.arrivals.empty();
  if (is_open)
    for (int i = load_.connections; i-- > 0;) { free_.push_back(i); connections_[i].is_free = true; }
  else
    for (int i = 0; i < load_.connections; ++i) wakes_.push({start_ + i / kConnectingMax * 2'000'000, i});
  returned_ = start_;
  while (true) {
    std::int64_t now = now_ns();
    if (is_stopping_) break;
    const bool is_issuing = now < end_ && issued_ < load_.requests_max && has_more_chains();
    if (!is_issuing && !busy_ && waiting_.empty()) {
      // Turns of chains that rest are not waited for once the time is up.
      if (now >= end_ || issued_ >= load_.requests_max || wakes_.empty()) break;
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
    for (int i = 0; i < count; ++i) {
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
  }
  const std::int64_t now = now_ns();
  for (int i = 0; i < load_.connections; ++i)
    if (connections_[static_cast<std::size_t>(i)].is_busy) finish(i, kAbandoned, now, false);
  while (!waiting_.empty()) {  // meant to be sent, never could be
    const Start s = waiting_.front();
    waiting_.pop_front();
    records.push_back({s.intended, now, 0, now, s.first, kAbandoned, 0, -1, -1, -1, 0, 0});
  }
  spent.wall_s = static_cast<double>(now - start_) * 1e-9;
  spent.cpu_s = cpu_s() - cpu;
  spent.starved_s = starved_s() - starved;
}

void Loop::start_due(std::int64_t now) {
  while (chains_started_ < load_.arrivals.size() && issued_ < load_.requests_max) {
    const std::int64_t due = start_ + load_.arrivals[chains_started_];
    if (due > now || due >= end_) return;
    const Start start = next_chain(due);
    ++issued_;
    if (free_.empty()) {
      ++spent.waited_for_connection;
      waiting_.push_back(start);
      continue;
    }
    const int which = free_.back();
    free_.pop_back();
    connections_[static_cast<std::size_t>(which)].is_free = false;
    give(start, which, now);
    now = now_ns();
  }
}

void Loop::give(const Start& start, int which, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  c.request = start.first;
  c.chain_end = start.end;
  begin(which, start.intended, now);
}

// A request is due: it is noted, and leaves now or as soon as its connection stands.
void Loop::begin(int which, std::int64_t intended, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  c.record = records.size();
  records.push_back({intended, now, 0, 0, c.request, 0, 0, -1, -1, -1, static_cast<float>(now - intended) * 1e-9f, 0});
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

void Loop::connect(int which, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  sockaddr_storage to{};
  socklen_t size;
  auto* four = reinterpret_cast<sockaddr_in*>(&to);
  auto* six = reinterpret_cast<sockaddr_in6*>(&to);
  if (inet_pton(AF_INET, load_.address.c_str(), &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons(static_cast<std::uint16_t>(load_.port));
    size = sizeof *four;
  } else {
    inet_pton(AF_INET6, load_.address.c_str(), &six->sin6_addr);
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(static_cast<std::uint16_t>(load_.port));
    size = sizeof *six;
  }
  c.fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c.fd < 0) { broke(which, kConnect, now); return; }
  const int on = 1;
  setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ++spent.connections_opened;
  if (::connect(c.fd, reinterpret_cast<sockaddr*>(&to), size) != 0) {
    if (errno != EINPROGRESS) { broke(which, kConnect, now); return; }
    c.is_connecting = true;
  }
  c.wants_write = c.is_connecting;
  epoll_event wanted{};
  wanted.events = EPOLLIN | EPOLLRDHUP | (c.wants_write ? static_cast<unsigned>(EPOLLOUT) : 0u);
  wanted.data.u32 = static_cast<std::uint32_t>(which);
  epoll_ctl(epoll_, EPOLL_CTL_ADD, c.fd, &wanted);
  if (load_.wire == Wire::grpc) c.grpc = std::make_unique<GrpcConnection>();
}

void Loop::watch(int which, bool for_write) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  if (c.wants_write == for_write) return;
  c.wants_write = for_write;
  epoll_event wanted{};
  wanted.events = EPOLLIN | EPOLLRDHUP | (for_write ? static_cast<unsigned>(EPOLLOUT) : 0u);
  wanted.data.u32 = static_cast<std::uint32_t>(which);
  epoll_ctl(epoll_, EPOLL_CTL_MOD, c.fd, &wanted);
}

void Loop::write(int which, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  if (!c.is_busy && !c.grpc) { watch(which, false); return; }
  if (c.is_busy && !c.written) {
    records[c.record].sent = now;
    c.written = 0;
  }
  while (true) {
    const std::string_view whole = c.grpc ? std::string_view(c.grpc->out) : load_.requests[static_cast<std::size_t>(c.request)];
    const std::size_t at = c.grpc ? 0 : c.written;
    if (at >= whole.size()) { watch(which, false); return; }
    const ssize_t count = ::send(c.fd, whole.data() + at, whole.size() - at, MSG_NOSIGNAL);
    if (count < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) { watch(which, true); return; }
      if (errno == EINTR) continue;
      // An answer may have come before the door closed: reading finds out which.
      watch(which, false);
      return;
    }
    c.written += static_cast<std::size_t>(count);
    if (c.grpc) c.grpc->out.erase(0, static_cast<std::size_t>(count));
  }
}

void Loop::read(int which) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  for (int turn = 0; turn < 4; ++turn) {  // others have answers too
    const ssize_t count = ::recv(c.fd, buffer_.data(), buffer_.size(), 0);
    const std::int64_t now = now_ns();
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return;
      broke(which, kReset, now);
      return;
    }
    if (count == 0) {
      if (c.is_busy && !c.grpc && c.answer.has_status && c.answer.ends_with_connection()) {
        if (load_.wire == Wire::stream && c.answer.status == 200 && !c.events.ended) finish(which, kStreamCut, now, false);
        else finish(which, c.answer.status, now, false);
      } else {
        broke(which, kClosed, now);
      }
      return;
    }
    consume(which, buffer_.data(), static_cast<std::size_t>(count), now);
    if (c.fd < 0 || static_cast<std::size_t>(count) < buffer_.size()) return;
  }
}

void Loop::consume(int which, const char* data, std::size_t size, std::int64_t now) {
  Connection& c = connections_[static_cast<std::size_t>(which)];
  if (c.grpc) {
    c.grpc->feed(data, size);
    if (c.grpc->broken) { broke(which, kMalformed, now); return; }
    if (c.is_busy && !records[c.record].first && c.grpc->body_bytes) records[c.record].first = now;
    if (!c.grpc->out.empty()) write(which, now);
    if (c.fd >= 0 && c.is_busy && c.grpc->done) {
      const int status = c.grpc->grpc_status;
      finish(which, status == 0 ? 200 : kGrpc - status, now, true);
    }
    return;
  }
  if (!c.is_busy) { drop(c); return; }  // nobody asked
  Record& record = records[c.record];
  const bool is_stream = load_.wire == Wire::stream;
  const std::size_t taken = c.answer.feed(data, size, [&](const char* part, std::size_t length) {
    if (c.answer.status != 200) {
      if (c.body.size() < kSampleBytes) c.body.append(part, std::min(length, kSampleBytes - c.body.size()));
    } else if (is_stream) {
      c.events.feed(part, length, [&] { token(c, now); });
    }
  });
  if (!is_stream && !record.first) record.first = now;
  if (c.answer.broken || c.events.overflowed) { broke(which, kMalformed, now); return; }
  if (!c.answer.done) return;
  std::int32_t status = c.answer.status;
  if (is_stream && status == 200) {
    record.prompt_tokens = c.events.prompt_tokens;
    record.completion_tokens = c.events.completion_tokens;
    record.cached_tokens = c.events.cached_tokens;
    if (c.events.failed) status = kStreamError;
    else if (!c.events.ended) status = kStreamCut;
  }
  // Bytes behind an answer that nobody asked for: whatever they are, this connection is no longer understood.
  finish(which, status, now, c.answer.keeps_alive && taken == size);
}

void Loop::token(Connection& c, std::int64_t now) {
  Record& record = records[c.record];
  if (!record.first) record.first = now;
  ++record.tokens;
  ++tokens;
  if (static_cast<std::int64_t>(events.size()) < load_.events_max) events.push_back({static_cast<std::uint32_t>(c.record), now});
  else ++spent.events_lost;
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
    begin(which, now, now);
    return;
  }
  c.request = c.chain_end;
  if (load_.arrivals.empty()) {
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

void Loop::drop(Connection& c) {
  if (c.fd >= 0) close(c.fd);
  c.fd = -1;
  c.is_connecting = c.wants_write = false;
  c.grpc.reset();
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
    const Start& s = waiting_.front();
    records.push_back({s.intended, now, 0, now, s.first, kTimeout, 0, -1, -1, -1, 0, 0});
    ++failed;
  }
  for (int i = 0; i < load_.connections; ++i)
    if (connections_[static_cast<std::size_t>(i)].is_busy && connections_[static_cast<std::size_t>(i)].deadline <= now) broke(i, kTimeout, now);
}

}  // namespace bench
