// BertNormalizer.
#include <algorithm>

#include "tokenizer/components.h"
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

// A part of a decomposition that waits for the combining marks after it.
struct Part {
  char32_t value;
  int combining_class;
  bool first;  // of its decomposition
};

// Canonical decomposition. The library does not sort the origins along with the marks: the n-th first part of a
// decomposition, wherever it lands, comes from the n-th character, and further parts from the last one counted so.
class Decomposer {
 public:
  explicit Decomposer(const Text& text) : text_(text) { result_.reserve(text.size()); }

  Text run() {
    for (const Character& each : text_) {
      const unicode::Expansion parts = unicode::decompose(each.value);
      for (size_t i = 0; i < parts.size; ++i) push(parts.characters[i], i == 0);
    }
    flush();
    return std::move(result_);
  }

 private:
  void push(char32_t value, bool first) {
    const int combining_class = unicode::combining_class(value);
    if (combining_class == 0) flush();
    pending_.push_back({value, combining_class, first});
  }

  void flush() {
    // A starter, which has class 0, comes first and stays there.
    std::stable_sort(pending_.begin(), pending_.end(),
                     [](const Part& one, const Part& other) { return one.combining_class < other.combining_class; });
    for (const Part& part : pending_) {
      if (part.first) ++consumed_;
      result_.push_back({part.value, text_[consumed_ == 0 ? 0 : consumed_ - 1].origin});
    }
    pending_.clear();
  }

  const Text& text_;
  Text result_;
  std::vector<Part> pending_;
  size_t consumed_ = 0;
};

void strip_accents(Text& text) {
  text = Decomposer(text).run();
  text.erase(std::remove_if(text.begin(), text.end(), [](const Character& each) { return unicode::is_accent(each.value); }),
             text.end());
}

void lower(Text& text) {
  Text result;
  result.reserve(text.size());
  for (const Character& each : text) {
    const unicode::Expansion letters = unicode::lower(each.value);
    for (size_t i = 0; i < letters.size; ++i) result.push_back({letters.characters[i], each.origin});
  }
  text = std::move(result);
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
    if (lower_) lower(text);
  }

 private:
  bool clean_, ideographs_, lower_, accents_;
};

}  // namespace

std::unique_ptr<const Normalizer> make_normalizer(const Fields& fields) {
  if (fields.type() == "BertNormalizer") return std::make_unique<BertNormalizer>(fields);
  fields.refuse();
}

}  // namespace cpuc
