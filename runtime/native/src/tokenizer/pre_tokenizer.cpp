// make_pre_tokenizer, BertPreTokenizer, WhitespaceSplit, and the Sequence of pre-tokenizers.
#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

// Words between spaces; what `is_apart` is a word of its own.
template <bool (*is_apart)(char32_t)>
class SpaceSplit : public PreTokenizer {
 public:
  std::vector<Text> split(const Text& text) const override {
    std::vector<Text> words;
    auto begin = text.begin();
    const auto close = [&](Text::const_iterator end) {
      if (begin != end) words.emplace_back(begin, end);
      begin = end;
    };
    for (auto at = text.begin(); at != text.end(); ++at) {
      const bool space = unicode::is_space(at->value);
      if (!space && !is_apart(at->value)) continue;
      close(at);
      if (space)
        begin = at + 1;
      else
        close(at + 1);
    }
    close(text.end());
    return words;
  }

  static std::unique_ptr<const PreTokenizer> make(const Fields&) { return std::make_unique<SpaceSplit>(); }
};

bool nothing(char32_t) { return false; }

// Each splits the words of the one before.
class PreTokenizerSequence : public PreTokenizer {
 public:
  explicit PreTokenizerSequence(const Fields& fields) : all_(make_all(fields, "pretokenizers", make_pre_tokenizer)) {}

  std::vector<Text> split(const Text& text) const override {
    std::vector<Text> words = {text};
    for (const auto& each : all_) {
      std::vector<Text> parts;
      for (const Text& word : words)
        for (Text& part : each->split(word)) parts.push_back(std::move(part));
      words = std::move(parts);
    }
    return words;
  }

  static std::unique_ptr<const PreTokenizer> make(const Fields& fields) {
    return std::make_unique<PreTokenizerSequence>(fields);
  }

 private:
  std::vector<std::unique_ptr<const PreTokenizer>> all_;
};

}  // namespace

std::unique_ptr<const PreTokenizer> make_pre_tokenizer(const Fields& fields) {
  static constexpr Maker<PreTokenizer> makers[] = {
      {"BertPreTokenizer", SpaceSplit<unicode::is_punctuation>::make},
      {"ByteLevel", byte_level_pre_tokenizer},
      {"Metaspace", metaspace_pre_tokenizer},
      {"Sequence", PreTokenizerSequence::make},
      {"Split", split_pre_tokenizer},
      {"WhitespaceSplit", SpaceSplit<nothing>::make},
  };
  return make_from(makers, fields);
}

}  // namespace cpuc
