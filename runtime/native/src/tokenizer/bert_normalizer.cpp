// BertNormalizer.
#include <algorithm>

#include "tokenizer/makers.h"
#include "tokenizer/normal_forms.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

// Removes what cleaning removes; every space that is left becomes U+0020.
void clean(Text& text) {
  text.erase(std::remove_if(text.begin(), text.end(), [](const Character& each) { return unicode::is_removed(each.value); }),
             text.end());
  for (Character& each : text)
    if (unicode::is_space(each.value)) each.value = ' ';
}

void space_ideographs(Text& text) {
  Text spaced;
  spaced.reserve(text.size());
  for (const Character& each : text) {
    const bool alone = unicode::is_ideograph(each.value);
    if (alone) spaced.push_back({' ', each.origin});
    spaced.push_back(each);
    if (alone) spaced.push_back({' ', each.origin});
  }
  text = std::move(spaced);
}

void strip_accents(Text& text) {
  transform(text, decompose(text, false));
  text.erase(std::remove_if(text.begin(), text.end(), [](const Character& each) { return unicode::is_accent(each.value); }),
             text.end());
}

class BertNormalizer : public Normalizer {
 public:
  explicit BertNormalizer(const Fields& fields)
      : clean_(fields.boolean("clean_text")),
        ideographs_(fields.boolean("handle_chinese_chars")),
        lower_(fields.boolean("lowercase")),
        // null, or absent: as lowercase.
        accents_(fields.has("strip_accents") ? fields.boolean("strip_accents") : lower_) {}

  void normalize(Text& text) const override {
    if (clean_) clean(text);
    if (ideographs_) space_ideographs(text);
    if (accents_) strip_accents(text);
    if (lower_) lowercase(text);
  }

 private:
  bool clean_, ideographs_, lower_, accents_;
};

}  // namespace

std::unique_ptr<const Normalizer> bert_normalizer(const Fields& fields) { return std::make_unique<BertNormalizer>(fields); }

}  // namespace cpuc
