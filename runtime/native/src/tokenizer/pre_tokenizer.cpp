// BertPreTokenizer.
#include "tokenizer/components.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

// Words between spaces; each punctuation mark is a word.
class BertPreTokenizer : public PreTokenizer {
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
      if (!space && !unicode::is_punctuation(at->value)) continue;
      close(at);
      if (space)
        begin = at + 1;
      else
        close(at + 1);
    }
    close(text.end());
    return words;
  }
};

}  // namespace

std::unique_ptr<const PreTokenizer> make_pre_tokenizer(const Fields& fields) {
  if (fields.type() == "BertPreTokenizer") return std::make_unique<BertPreTokenizer>();
  fields.refuse();
}

}  // namespace cpuc
