// The Replace normalizer.
#include "tokenizer/makers.h"
#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

using Place = Text::const_iterator;

// How many characters from `at` on match.
using Matcher = size_t (*)(Place at, Place end);

template <typename Predicate>
size_t run_of(Place at, Place end, Predicate is_part) {
  Place last = at;
  while (last != end && is_part(last->value)) ++last;
  return static_cast<size_t>(last - at);
}

size_t two_or_more_spaces(Place at, Place end) {
  const size_t size = run_of(at, end, [](char32_t each) { return each == ' '; });
  return size < 2 ? 0 : size;
}

size_t white_space_to_join(Place at, Place end) {
  const size_t size = run_of(at, end, unicode::is_space);
  const bool alone = size == 1 && (at->value == '\n' || at->value == '\r' || at->value == '\t');
  return size < 2 && !alone ? 0 : size;
}

size_t line_feed(Place at, Place) { return at->value == '\n' ? 1 : 0; }

// The regular expressions that converted SentencePiece models have.
struct Expression {
  const char* pattern;
  Matcher match;
};
constexpr Expression expressions[] = {
    {" {2,}", two_or_more_spaces}, {"\\s{2,}|[\\n\\r\\t]", white_space_to_join}, {"\\n", line_feed}, {"\n", line_feed}};

// Replaces what matches from left to right. The new characters come from the last one that matched.
class Replace : public Normalizer {
 public:
  explicit Replace(const Fields& fields) : content_(to_text(fields.string("content"))) {
    const Fields pattern = fields.object("pattern");
    if (pattern.has("Regex")) {
      const std::string name = pattern.string("Regex");
      for (const Expression& each : expressions)
        if (name == each.pattern) match_ = each.match;
      if (!match_) pattern.refuse("the regular expression '" + name + "'");
      return;
    }
    literal_ = to_text(pattern.string("String"));
    if (literal_.empty()) pattern.refuse("an empty string");
  }

  void normalize(Text& text) const override {
    Text result;
    result.reserve(text.size());
    for (Place at = text.begin(), end = text.end(); at != end;) {
      const size_t size = match_ ? match_(at, end) : literal_at(at, end);
      if (size == 0) {
        result.push_back(*at++);
        continue;
      }
      at += static_cast<std::ptrdiff_t>(size);
      for (const Character& each : content_) result.push_back({each.value, std::prev(at)->origin});
    }
    text = std::move(result);
  }

 private:
  size_t literal_at(Place at, Place end) const {
    if (static_cast<size_t>(end - at) < literal_.size()) return 0;
    for (const Character& each : literal_)
      if (each.value != (at++)->value) return 0;
    return literal_.size();
  }

  Matcher match_ = nullptr;
  Text literal_, content_;
};

}  // namespace

std::unique_ptr<const Normalizer> replace_normalizer(const Fields& fields) { return std::make_unique<Replace>(fields); }

}  // namespace cpuc
