// make_normalizer, and the normalizers that are a function.
#include <algorithm>

#include "tokenizer/makers.h"
#include "tokenizer/normal_forms.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

// A normalizer without settings.
template <void (*function)(Text&)>
class Simple : public Normalizer {
 public:
  void normalize(Text& text) const override { function(text); }

  static std::unique_ptr<const Normalizer> make(const Fields&) { return std::make_unique<Simple>(); }
};

template <bool composed, bool compatible>
void normal_form(Text& text) {
  const std::vector<Change> parts = decompose(text, compatible);
  transform(text, composed ? recompose(parts) : parts);
}

void strip_marks(Text& text) {
  const auto is_mark = [](const Character& each) { return unicode::is_mark(each.value); };
  text.erase(std::remove_if(text.begin(), text.end(), is_mark), text.end());
}

// Without the spaces around.
class Strip : public Normalizer {
 public:
  explicit Strip(const Fields& fields) : left_(fields.boolean("strip_left")), right_(fields.boolean("strip_right")) {}

  void normalize(Text& text) const override {
    const auto is_kept = [](const Character& each) { return !unicode::is_space(each.value); };
    if (right_) text.erase(std::find_if(text.rbegin(), text.rend(), is_kept).base(), text.end());
    if (left_) text.erase(text.begin(), std::find_if(text.begin(), text.end(), is_kept));
  }

  static std::unique_ptr<const Normalizer> make(const Fields& fields) { return std::make_unique<Strip>(fields); }

 private:
  bool left_, right_;
};

// What it puts before a text comes from the text's first character.
class Prepend : public Normalizer {
 public:
  explicit Prepend(const Fields& fields) : prefix_(to_text(fields.string("prepend"))) {}

  void normalize(Text& text) const override {
    if (text.empty()) return;
    Text result = prefix_;
    for (Character& each : result) each.origin = text.front().origin;
    result.insert(result.end(), text.begin(), text.end());
    text = std::move(result);
  }

  static std::unique_ptr<const Normalizer> make(const Fields& fields) { return std::make_unique<Prepend>(fields); }

 private:
  Text prefix_;
};

class NormalizerSequence : public Normalizer {
 public:
  explicit NormalizerSequence(const Fields& fields) : all_(make_all(fields, "normalizers", make_normalizer)) {}

  void normalize(Text& text) const override {
    for (const auto& each : all_) each->normalize(text);
  }

  static std::unique_ptr<const Normalizer> make(const Fields& fields) {
    return std::make_unique<NormalizerSequence>(fields);
  }

 private:
  std::vector<std::unique_ptr<const Normalizer>> all_;
};

}  // namespace

void lowercase(Text& text) {
  Text result;
  result.reserve(text.size());
  for (const Character& each : text) {
    const unicode::Expansion letters = unicode::lower(each.value);
    for (size_t i = 0; i < letters.size; ++i) result.push_back({letters.characters[i], each.origin});
  }
  text = std::move(result);
}

std::unique_ptr<const Normalizer> make_normalizer(const Fields& fields) {
  static constexpr Maker<Normalizer> makers[] = {
      {"BertNormalizer", bert_normalizer},
      {"ByteLevel", Simple<to_byte_characters>::make},
      {"Lowercase", Simple<lowercase>::make},
      {"NFC", Simple<normal_form<true, false>>::make},
      {"NFD", Simple<normal_form<false, false>>::make},
      {"NFKC", Simple<normal_form<true, true>>::make},
      {"NFKD", Simple<normal_form<false, true>>::make},
      {"Precompiled", precompiled_normalizer},
      {"Prepend", Prepend::make},
      {"Replace", replace_normalizer},
      {"Sequence", NormalizerSequence::make},
      {"Strip", Strip::make},
      {"StripAccents", Simple<strip_marks>::make},
  };
  return make_from(makers, fields);
}

}  // namespace cpuc
