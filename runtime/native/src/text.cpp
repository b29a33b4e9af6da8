#include "text.h"

#include <charconv>
#include <cstdio>
#include <cstdlib>

namespace cpuc {

std::string in_quotes(const std::string& text, bool ascii) {
  const bool twice = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = twice ? '"' : '\'';
  std::string result(1, quote);
  for (const unsigned char byte : text) {
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\x%02x", byte);
    if (byte == '\n') result += "\\n";
    else if (byte == '\r') result += "\\r";
    else if (byte == '\t') result += "\\t";
    else if (byte == '\\' || byte == quote) result += {'\\', static_cast<char>(byte)};
    else if (byte >= 0x80 && ascii) result += "\xEF\xBF\xBD";
    else if (byte < 0x20 || byte == 0x7f) result += escape;
    else result += static_cast<char>(byte);
  }
  return result + quote;
}

std::string number_text(double value) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string text(buffer, end);
  const size_t mark = text.find('e');
  const int exponent = std::atoi(text.c_str() + mark + 1);
  if (exponent < -4 || exponent >= 16) return text;
  const std::string sign = text[0] == '-' ? "-" : "";
  std::string digits = text.substr(sign.size(), mark - sign.size());
  if (digits.size() > 1) digits.erase(1, 1);  // the point
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string printable(const std::string& text) {
  std::string result;
  char escape[8];
  for (size_t i = 0; i < text.size(); ++i) {
    const auto at = [&](size_t ahead) { return i + ahead < text.size() ? static_cast<unsigned char>(text[i + ahead]) : 0U; };
    const unsigned first = at(0), second = at(1), third = at(2);
    const bool turns = first == 0xE2 && ((second == 0x80 && ((third >= 0xA8 && third <= 0xAE) || (third >= 0x8B && third <= 0x8F))) ||
                                         (second == 0x81 && third >= 0xA6 && third <= 0xA9));
    if (first < 0x20 || first == 0x7f) {
      std::snprintf(escape, sizeof escape, first == '\n' ? "\\n" : first == '\r' ? "\\r" : "\\x%02x", first);
      result += escape;
    } else if (first == 0xC2 && second >= 0x80 && second < 0xA0) {
      std::snprintf(escape, sizeof escape, "\\x%02x", second);
      result += escape, i += 1;
    } else if (turns) {
      std::snprintf(escape, sizeof escape, "\\u%04x", 0x2000 | (second & 0x3F) << 6 | (third & 0x3F));
      result += escape, i += 2;
    } else {
      result += text[i];
    }
  }
  return result;
}

}  // namespace cpuc
