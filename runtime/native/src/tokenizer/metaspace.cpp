// Metaspace: the pre-tokenizer and the decoder.
#include <algorithm>

#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

enum class Prepend { always, never, first };

// What the pre-tokenizer and the decoder have in common.
struct Settings {
  explicit Settings(const Fields& fields) : prepend(scheme_of(fields)), split(fields.boolean("split", true)) {
    const std::u32string value = unicode::decode(fields.string("replacement"));
    if (value.size() != 1) fields.fail("field 'replacement' must be one character");
    replacement = value[0];
    if (fields.boolean("add_prefix_space", true) || prepend == Prepend::never) return;
    fields.fail("field 'add_prefix_space' does not match 'prepend_scheme'");
  }

  static Prepend scheme_of(const Fields& fields) {
    if (!fields.has("prepend_scheme")) return Prepend::always;
    const std::string name = fields.string("prepend_scheme");
    if (name == "always") return Prepend::always;
    if (name == "never") return Prepend::never;
    if (name == "first") return Prepend::first;
    fields.fail("field 'prepend_scheme' must be always, never or first");
  }

  char32_t replacement;
  Prepend prepend;
  bool split;
};

class Metaspace : public PreTokenizer {
 public:
  explicit Metaspace(const Fields& fields) : settings_(fields) {}

  std::vector<Text> split(const Text& text) const override {
    if (text.empty()) return {};
    Text whole = text;
    for (Character& each : whole)
      if (each.value == ' ') each.value = settings_.replacement;
    if (wants_prefix(whole)) whole.insert(whole.begin(), {settings_.replacement, whole.front().origin});
    if (!settings_.split) return {whole};
    std::vector<Text> words;
    for (auto begin = whole.begin(); begin != whole.end();) {
      const auto is_next = [&](const Character& each) { return each.value == settings_.replacement; };
      const auto end = std::find_if(begin + 1, whole.end(), is_next);
      words.emplace_back(begin, end);
      begin = end;
    }
    return words;
  }

 private:
  bool wants_prefix(const Text& text) const {
    if (settings_.prepend == Prepend::never || text.front().value == settings_.replacement) return false;
    return settings_.prepend == Prepend::always || text.front().origin == 0;
  }

  Settings settings_;
};

class MetaspaceDecoder : public Decoder {
 public:
  explicit MetaspaceDecoder(const Fields& fields) : settings_(fields) {}

  std::vector<std::string> decode(std::vector<std::string> tokens) const override {
    for (std::string& token : tokens) {
      const bool dropped = &token == &tokens.front() && settings_.prepend != Prepend::never;
      std::string text;
      for (const char32_t character : unicode::decode(token)) {
        const bool space = character == settings_.replacement;
        if (!space || !dropped) unicode::append(text, space ? ' ' : character);
      }
      token = std::move(text);
    }
    return tokens;
  }

 private:
  Settings settings_;
};

}  // namespace

std::unique_ptr<const PreTokenizer> metaspace_pre_tokenizer(const Fields& fields) {
  return std::make_unique<Metaspace>(fields);
}

std::unique_ptr<const Decoder> metaspace_decoder(const Fields& fields) {
  return std::make_unique<MetaspaceDecoder>(fields);
}

}  // namespace cpuc
