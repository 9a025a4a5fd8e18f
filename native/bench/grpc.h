// A gRPC call at a time over HTTP/2, the client's side, as bytes: what to send for a request, what an answer says.
//
// Header blocks are made before the load (src/farthing/bench/wire.py) of literals that need no table. The server is told
// to keep no table either (SETTINGS_HEADER_TABLE_SIZE 0), so each of its header blocks stands alone (RFC 7541, 4.2), and
// `grpc-status` is found in it without a Huffman decoder: only its own two spellings are looked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace bench {

class GrpcConnection {
 public:
  bool done = false, broken = false, is_going = false;  // is_going: GOAWAY, take another connection for the next call
  int grpc_status = -1;
  std::uint64_t body_bytes = 0;
  std::string out;  // to be written

  GrpcConnection() {
    out.assign("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    std::string settings;
    setting(settings, 1, 0);           // HEADER_TABLE_SIZE
    setting(settings, 2, 0);           // ENABLE_PUSH
    setting(settings, 4, kWindowMax);  // INITIAL_WINDOW_SIZE
    setting(settings, 5, (1 << 24) - 1);  // MAX_FRAME_SIZE
    frame(4, 0, 0, settings);
    window_update(kWindowMax - 65535);
  }

  void begin(std::string_view head, std::string_view message) {
    stream_ += stream_ ? 2 : 1;
    done = false;
    grpc_status = -1;
    body_bytes = 0;
    message_ = message;
    stream_window_ = initial_window_;
    frame(1, 4, stream_, head);  // END_HEADERS
    send_message();
  }
  bool is_spent() const { return is_going || stream_ > 0x7ffffff0; }
  bool has_sent() const { return message_.empty() && out.empty(); }

  void feed(const char* data, std::size_t size) {
    while (size && !broken) {
      if (in_.empty() && size >= 9 && size >= 9 + length_of(data)) {
        const std::size_t whole = 9 + length_of(data);
        read({data, whole});
        data += whole;
        size -= whole;
        continue;
      }
      std::size_t want = in_.size() < 9 ? 9 - in_.size() : 9 + length_of(in_.data()) - in_.size();
      want = std::min(want, size);
      in_.append(data, want);
      data += want;
      size -= want;
      if (in_.size() >= 9 && in_.size() == 9 + length_of(in_.data())) {
        const std::string whole = std::move(in_);
        in_.clear();
        read(whole);
      }
    }
  }

 private:
  static constexpr std::uint32_t kWindowMax = 0x7fffffff;
  std::string in_, block_;
  std::string_view message_;
  std::uint32_t stream_ = 0, received_ = 0, frame_max_ = 16384;
  std::int64_t window_ = 65535, stream_window_ = 65535, initial_window_ = 65535;
  bool ends_after_block_ = false;

  static std::size_t length_of(const char* p) {
    const auto* b = reinterpret_cast<const unsigned char*>(p);
    return static_cast<std::size_t>(b[0]) << 16 | static_cast<std::size_t>(b[1]) << 8 | b[2];
  }
  static std::uint32_t number(const char* p) {
    const auto* b = reinterpret_cast<const unsigned char*>(p);
    return static_cast<std::uint32_t>(b[0]) << 24 | static_cast<std::uint32_t>(b[1]) << 16 | static_cast<std::uint32_t>(b[2]) << 8 | b[3];
  }
  static void put(std::string& to, std::uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) to.push_back(static_cast<char>(value >> shift));
  }
  static void setting(std::string& to, int id, std::uint32_t value) {
    to.push_back(0);
    to.push_back(static_cast<char>(id));
    put(to, value);
  }
  void frame(int type, int flags, std::uint32_t stream, std::string_view payload) {
    out.push_back(static_cast<char>(payload.size() >> 16));
    out.push_back(static_cast<char>(payload.size() >> 8));
    out.push_back(static_cast<char>(payload.size()));
    out.push_back(static_cast<char>(type));
    out.push_back(static_cast<char>(flags));
    put(out, stream);
    out.append(payload);
  }
  void window_update(std::uint32_t by) {
    std::string payload;
    put(payload, by);
    frame(8, 0, 0, payload);
  }
  void send_message() {
    while (!message_.empty()) {
      const std::int64_t room = std::min({window_, stream_window_, static_cast<std::int64_t>(frame_max_)});
      if (room <= 0) return;
      const std::size_t take = std::min(message_.size(), static_cast<std::size_t>(room));
      const bool is_last = take == message_.size();
      frame(0, is_last ? 1 : 0, stream_, message_.substr(0, take));
      message_.remove_prefix(take);
      window_ -= static_cast<std::int64_t>(take);
      stream_window_ -= static_cast<std::int64_t>(take);
    }
  }

  void read(std::string_view whole) {
    const int type = static_cast<unsigned char>(whole[3]), flags = static_cast<unsigned char>(whole[4]);
    const std::uint32_t stream = number(whole.data() + 5) & 0x7fffffff;
    std::string_view payload = whole.substr(9);
    switch (type) {
      case 0:  // DATA
        received_ += static_cast<std::uint32_t>(payload.size());
        body_bytes += payload.size();
        if (received_ > 1u << 30) { window_update(received_); received_ = 0; }
        if (stream == stream_ && flags & 1) done = true;
        break;
      case 1:  // HEADERS
        if (flags & 8) {  // PADDED
          if (payload.empty()) { broken = true; return; }
          const std::size_t pad = static_cast<unsigned char>(payload[0]);
          if (pad + 1 > payload.size()) { broken = true; return; }
          payload = payload.substr(1, payload.size() - 1 - pad);
        }
        if (flags & 32) {  // PRIORITY
          if (payload.size() < 5) { broken = true; return; }
          payload.remove_prefix(5);
        }
        ends_after_block_ = flags & 1;
        block_.assign(payload);
        if (flags & 4) headers(stream);
        break;
      case 9:  // CONTINUATION
        block_.append(payload);
        if (block_.size() > 1 << 20) broken = true;
        if (flags & 4) headers(stream);
        break;
      case 3:  // RST_STREAM
        if (stream == stream_ && !done) { grpc_status = grpc_status < 0 ? 13 : grpc_status; done = true; }
        break;
      case 4:  // SETTINGS
        if (flags & 1) break;
        for (std::size_t at = 0; at + 6 <= payload.size(); at += 6) {
          const int id = static_cast<unsigned char>(payload[at + 1]);
          const std::uint32_t value = number(payload.data() + at + 2);
          if (id == 4) {
            stream_window_ += static_cast<std::int64_t>(value) - initial_window_;
            initial_window_ = value;
          } else if (id == 5) {
            frame_max_ = std::min<std::uint32_t>(value, 1 << 20);
          }
        }
        frame(4, 1, 0, {});
        send_message();
        break;
      case 6:  // PING
        if (!(flags & 1)) frame(6, 1, 0, payload);
        break;
      case 7: is_going = true; break;  // GOAWAY
      case 8:  // WINDOW_UPDATE
        if (payload.size() != 4) { broken = true; return; }
        if (stream == 0) window_ += number(payload.data()) & 0x7fffffff;
        else if (stream == stream_) stream_window_ += number(payload.data()) & 0x7fffffff;
        send_message();
        break;
      default: break;
    }
  }

  void headers(std::uint32_t stream) {
    if (stream != stream_) return;
    find_status();
    if (ends_after_block_) {
      if (grpc_status < 0) grpc_status = 2;
      done = true;
    }
  }

  // "grpc-status" as it is, and in Huffman's code; its value is one or two digits, plain or coded.
  void find_status() {
    static constexpr std::string_view kPlain = "\x0bgrpc-status";
    static constexpr std::string_view kCoded("\x88\x9a\xca\xc8\xb2\x12\x34\xda\x8f", 9);
    std::size_t at = block_.find(kPlain), size = kPlain.size();
    if (at == std::string::npos) at = block_.find(kCoded), size = kCoded.size();
    if (at == std::string::npos || at + size + 1 >= block_.size()) return;
    const std::string_view value = std::string_view(block_).substr(at + size);
    const int head = static_cast<unsigned char>(value[0]), length = head & 0x7f;
    if (length < 1 || length > 2 || value.size() < 1u + length) return;
    if (head & 0x80) {
      int bits = 0, count = length * 8, code = 0;
      for (int i = 0; i < length; ++i) bits = bits << 8 | static_cast<unsigned char>(value[1 + i]);
      while (count >= 5) {  // 0, 1, 2 are 00000, 00001, 00010; 3 to 9 are 011001 to 011111
        const int five = bits >> (count - 5) & 31;
        if (five <= 2) { code = code * 10 + five; count -= 5; continue; }
        if (count < 6) break;
        const int six = bits >> (count - 6) & 63;
        if (six < 25 || six > 31) break;
        code = code * 10 + six - 22;
        count -= 6;
      }
      grpc_status = code;
    } else {
      grpc_status = 0;
      for (int i = 0; i < length; ++i) grpc_status = grpc_status * 10 + (value[1 + i] - '0');
    }
  }
};

}  // namespace bench
