// make_decoder, and the decoders that Llama's family puts in a sequence.
#include <numeric>

#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

class DecoderSequence : public Decoder {
 public:
  explicit DecoderSequence(const Fields& fields) : all_(make_all(fields, "decoders", make_decoder)) {}

  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    for (const auto& each : all_) tokens = each->decode(std::move(tokens));
    return tokens;
  }

  static std::unique_ptr<const Decoder> make(const Fields& fields) { return std::make_unique<DecoderSequence>(fields); }

 private:
  std::vector<std::unique_ptr<const Decoder>> all_;
};

// Tokens for bytes, such as <0x0A>, become text; each of those that are none becomes U+FFFD.
class ByteFallback : public Decoder {
 public:
  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    std::vector<std::string> texts;
    std::string bytes;
    const auto flush = [&] {
      const bool valid = unicode::to_valid(bytes) == bytes;
      if (valid && !bytes.empty()) texts.push_back(bytes);
      if (!valid) texts.insert(texts.end(), bytes.size(), "\xef\xbf\xbd");
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const auto byte = byte_of(token)) {
        bytes += *byte;
        continue;
      }
      flush();
      texts.push_back(std::move(token));
    }
    flush();
    return texts;
  }

  static std::unique_ptr<const Decoder> make(const Fields&) { return std::make_unique<ByteFallback>(); }

 private:
  static std::optional<char> byte_of(const std::string& token) {
    if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return std::nullopt;
    const int high = value_of(token[3]), low = value_of(token[4]);
    // A sign before a digit is a number in Rust.
    if (token[3] == '+' && low >= 0) return static_cast<char>(low);
    return high < 0 || low < 0 ? std::nullopt : std::optional(static_cast<char>(high << 4 | low));
  }

  static int value_of(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    const char letter = static_cast<char>(digit | 0x20);
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
  }
};

// All tokens become one.
class Fuse : public Decoder {
 public:
  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    return {std::accumulate(tokens.begin(), tokens.end(), std::string())};
  }

  static std::unique_ptr<const Decoder> make(const Fields&) { return std::make_unique<Fuse>(); }
};

// Takes a character off the beginning of each token, `start` times at most.
class StripDecoder : public Decoder {
 public:
  explicit StripDecoder(const Fields& fields) : content_(fields.string("content")), start_(fields.unsigned32("start")) {
    if (unicode::decode(content_).size() != 1) fields.fail("field 'content' must be one character");
    if (fields.unsigned32("stop") != 0) fields.refuse("stop");
  }

  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    for (std::string& token : tokens) {
      size_t size = 0;
      for (int64_t i = 0; i < start_ && token.compare(size, content_.size(), content_) == 0; ++i) size += content_.size();
      token.erase(0, size);
    }
    return tokens;
  }

  static std::unique_ptr<const Decoder> make(const Fields& fields) { return std::make_unique<StripDecoder>(fields); }

 private:
  std::string content_;
  int64_t start_;
};

class ReplaceDecoder : public Decoder {
 public:
  explicit ReplaceDecoder(const Fields& fields) : content_(fields.string("content")) {
    const Fields pattern = fields.object("pattern");
    if (!pattern.has("String")) pattern.refuse("a regular expression");
    pattern_ = pattern.string("String");
    if (pattern_.empty()) pattern.refuse("an empty string");
  }

  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    for (std::string& token : tokens)
      for (size_t at = token.find(pattern_); at != std::string::npos; at = token.find(pattern_, at + content_.size()))
        token.replace(at, pattern_.size(), content_);
    return tokens;
  }

  static std::unique_ptr<const Decoder> make(const Fields& fields) { return std::make_unique<ReplaceDecoder>(fields); }

 private:
  std::string pattern_, content_;
};

}  // namespace

std::unique_ptr<const Decoder> make_decoder(const Fields& fields) {
  static constexpr Maker<Decoder> makers[] = {
      {"ByteFallback", ByteFallback::make}, {"ByteLevel", byte_level_decoder},  {"Fuse", Fuse::make},
      {"Metaspace", metaspace_decoder},     {"Replace", ReplaceDecoder::make},  {"Sequence", DecoderSequence::make},
      {"Strip", StripDecoder::make},        {"WordPiece", word_piece_decoder},
  };
  return make_from(makers, fields);
}

}  // namespace cpuc
