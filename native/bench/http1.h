// HTTP/1.1 answers, read as they come: status, where the body ends, and the bytes of the body. No socket, no time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <strings.h>

namespace bench {

// Feed bytes; `body` is called with each piece of the body. After `done`, what is left of the bytes belongs to the next
// answer. `broken` says that this is not HTTP as we know it.
class Answer {
 public:
  bool done = false, broken = false, keeps_alive = true, has_status = false;
  int status = 0;
  std::uint64_t body_bytes = 0;

  void reset() { *this = Answer(); }
  // Whether the end of the connection is the end of the body.
  bool ends_with_connection() const { return state_ == State::until_close; }

  template <class Body>
  std::size_t feed(const char* data, std::size_t size, Body&& body) {
    std::size_t at = 0;
    while (at < size && !done && !broken) {
      switch (state_) {
        case State::head: at += head(data + at, size - at); break;
        case State::counted: {
          const std::size_t take = left_ < size - at ? static_cast<std::size_t>(left_) : size - at;
          give(data + at, take, body);
          at += take;
          if (!(left_ -= take)) done = true;
          break;
        }
        case State::until_close: give(data + at, size - at, body); at = size; break;
        case State::chunk_size: at += line(data + at, size - at, &Answer::chunk_size); break;
        case State::chunk: {
          const std::size_t take = left_ < size - at ? static_cast<std::size_t>(left_) : size - at;
          give(data + at, take, body);
          at += take;
          if (!(left_ -= take)) state_ = State::chunk_end;
          break;
        }
        case State::chunk_end: at += line(data + at, size - at, &Answer::chunk_end); break;
        case State::trailers: at += line(data + at, size - at, &Answer::trailer); break;
      }
    }
    return at;
  }

 private:
  enum class State : std::uint8_t { head, counted, until_close, chunk_size, chunk, chunk_end, trailers };
  static constexpr std::size_t kHeadMax = 1 << 16, kLineMax = 1 << 12;
  State state_ = State::head;
  std::uint64_t left_ = 0;
  std::string held_;  // a head or a line that has not ended yet

  template <class Body>
  void give(const char* data, std::size_t size, Body& body) {
    body_bytes += size;
    body(data, size);
  }

  // The common case, a whole head in one piece, copies nothing.
  std::size_t head(const char* data, std::size_t size) {
    if (held_.empty()) {
      const void* end = memmem(data, size, "\r\n\r\n", 4);
      if (end) {
        const std::size_t length = static_cast<const char*>(end) - data + 4;
        read_head({data, length});
        return length;
      }
    }
    const std::size_t before = held_.size(), from = before < 3 ? 0 : before - 3;
    held_.append(data, size);
    const std::size_t end = held_.find("\r\n\r\n", from);
    if (end == std::string::npos) {
      broken = held_.size() > kHeadMax;
      return size;
    }
    const std::string whole = std::move(held_);
    held_.clear();
    read_head(std::string_view(whole).substr(0, end + 4));
    return end + 4 - before;
  }

  void read_head(std::string_view text) {
    if (text.size() < 16 || text.substr(0, 7) != "HTTP/1." || text[8] != ' ') { broken = true; return; }
    status = 0;
    for (int i = 9; i < 12; ++i) {
      if (text[i] < '0' || text[i] > '9') { broken = true; return; }
      status = status * 10 + (text[i] - '0');
    }
    if (status < 200) return;  // interim: the real answer follows
    has_status = true;
    keeps_alive = text[7] == '1';
    bool is_chunked = false, has_length = false;
    std::size_t at = text.find("\r\n") + 2;
    while (at < text.size()) {
      const std::size_t end = text.find("\r\n", at);
      const std::string_view header = text.substr(at, end - at);
      at = end + 2;
      const std::size_t colon = header.find(':');
      if (colon == std::string_view::npos) continue;
      std::string_view value = header.substr(colon + 1);
      while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
      while (!value.empty() && (value.back() == ' ' || value.back() == '\t')) value.remove_suffix(1);
      if (is(header.substr(0, colon), "content-length")) {
        left_ = 0;
        if (value.empty() || value.size() > 18) { broken = true; return; }
        for (char c : value) {
          if (c < '0' || c > '9') { broken = true; return; }
          left_ = left_ * 10 + static_cast<std::uint64_t>(c - '0');
        }
        has_length = true;
      } else if (is(header.substr(0, colon), "transfer-encoding")) {
        if (value.size() < 7 || !is(value.substr(value.size() - 7), "chunked")) { broken = true; return; }
        is_chunked = true;
      } else if (is(header.substr(0, colon), "connection")) {
        if (is(value, "close")) keeps_alive = false;
        if (is(value, "keep-alive")) keeps_alive = true;
      }
    }
    if (status == 204 || status == 304) done = true;
    else if (is_chunked) state_ = State::chunk_size;
    else if (!has_length) { state_ = State::until_close; keeps_alive = false; }
    else if (!left_) done = true;
    else state_ = State::counted;
  }

  static bool is(std::string_view found, std::string_view wanted) {
    return found.size() == wanted.size() && strncasecmp(found.data(), wanted.data(), wanted.size()) == 0;
  }

  std::size_t line(const char* data, std::size_t size, void (Answer::*read)(std::string_view)) {
    const auto* end = static_cast<const char*>(memchr(data, '\n', size));
    if (!end) {
      held_.append(data, size);
      broken = held_.size() > kLineMax;
      return size;
    }
    held_.append(data, end - data);
    if (!held_.empty() && held_.back() == '\r') held_.pop_back();
    const std::string whole = std::move(held_);
    held_.clear();
    (this->*read)(whole);
    return end - data + 1;
  }

  void chunk_size(std::string_view text) {
    std::uint64_t size = 0;
    std::size_t digits = 0;
    for (char c : text) {
      const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (value < 0) break;
      size = size * 16 + static_cast<std::uint64_t>(value);
      if (++digits > 12) { broken = true; return; }
    }
    if (!digits) { broken = true; return; }
    left_ = size;
    state_ = size ? State::chunk : State::trailers;
  }
  void chunk_end(std::string_view text) {
    broken = !text.empty();
    state_ = State::chunk_size;
  }
  void trailer(std::string_view text) { done = text.empty(); }
};

}  // namespace bench
