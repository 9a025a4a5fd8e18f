// The loop's sockets: connections made, requests written, answers read. When is told by loop.cpp.
#include "loop.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace bench {
namespace {

constexpr std::size_t kSampleBytes = 1 << 10;

}  // namespace

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
  if (!record.first) {
    record.first = now;
    if (load_.is_fed) told_.push_back({c.ticket, 0, 1});
  }
  ++record.tokens;
  ++tokens;
  if (static_cast<std::int64_t>(events.size()) < load_.events_max) events.push_back({static_cast<std::uint32_t>(c.record), now});
  else ++spent.events_lost;
}

void Loop::drop(Connection& c) {
  if (c.fd >= 0) close(c.fd);
  c.fd = -1;
  c.is_connecting = c.wants_write = false;
  c.grpc.reset();
}

}  // namespace bench
