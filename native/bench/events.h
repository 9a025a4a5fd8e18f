// Server-sent events of OpenAI's API, read as they come: which carry text, what the usage says, whether they end.
// No JSON is parsed: inside a JSON string every quote is escaped, so `"content":"` can stand nowhere but at its key.
#pragma once

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace bench {

class Events {
 public:
  bool ended = false, failed = false, overflowed = false;
  std::int32_t prompt_tokens = -1, completion_tokens = -1, cached_tokens = -1;

  void reset() { *this = Events(); }

  // `token` is called for each event that carries text.
  template <class Token>
  void feed(const char* data, std::size_t size, Token&& token) {
    while (size) {
      const auto* end = static_cast<const char*>(memchr(data, '\n', size));
      if (!end) {
        held_.append(data, size);
        overflowed |= held_.size() > kLineMax;
        return;
      }
      const std::size_t length = static_cast<std::size_t>(end - data);
      if (held_.empty()) {
        line({data, length}, token);
      } else {
        held_.append(data, length);
        line(held_, token);
        held_.clear();
      }
      data = end + 1;
      size -= length + 1;
    }
  }

 private:
  static constexpr std::size_t kLineMax = 16 << 20;
  std::string held_;

  template <class Token>
  void line(std::string_view text, Token& token) {
    if (text.substr(0, 5) != "data:") return;
    text.remove_prefix(5);
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    if (text.substr(0, 6) == "[DONE]") { ended = true; return; }
    if (has_text(text, "\"content\"") || has_text(text, "\"text\"") || has_text(text, "\"reasoning_content\"") ||
        has_text(text, "\"arguments\""))
      token();
    if (text.find("\"usage\"") != std::string_view::npos) {
      number(text, "\"prompt_tokens\"", prompt_tokens);
      number(text, "\"completion_tokens\"", completion_tokens);
      number(text, "\"cached_tokens\"", cached_tokens);
    }
    if (has_error(text)) failed = true;
  }

  // Whether there is a key `error` that is not null; a model may also say just this word.
  static bool has_error(std::string_view text) {
    constexpr std::string_view key = "\"error\"";
    for (std::size_t at = text.find(key); at != std::string_view::npos; at = text.find(key, at + 1)) {
      std::size_t colon = at + key.size();
      while (colon < text.size() && text[colon] == ' ') ++colon;
      if (colon < text.size() && text[colon] == ':' && !starts(after(text, colon), "null")) return true;
    }
    return false;
  }
  static std::string_view after(std::string_view text, std::size_t at) {
    while (at < text.size() && (text[at] == ' ' || text[at] == ':')) ++at;
    return text.substr(at);
  }
  static bool starts(std::string_view text, std::string_view with) { return text.substr(0, with.size()) == with; }
  static bool has_text(std::string_view text, std::string_view key) {
    const std::size_t at = text.find(key);
    if (at == std::string_view::npos) return false;
    const std::string_view value = after(text, at + key.size());
    return value.size() > 1 && value[0] == '"' && value[1] != '"';
  }
  static void number(std::string_view text, std::string_view key, std::int32_t& into) {
    const std::size_t at = text.find(key);
    if (at == std::string_view::npos) return;
    const std::string_view value = after(text, at + key.size());
    std::int64_t found = -1;
    for (std::size_t i = 0; i < value.size() && i < 9 && std::isdigit(static_cast<unsigned char>(value[i])); ++i)
      found = (found < 0 ? 0 : found * 10) + (value[i] - '0');
    if (found >= 0) into = static_cast<std::int32_t>(found);
  }
};

}  // namespace bench
