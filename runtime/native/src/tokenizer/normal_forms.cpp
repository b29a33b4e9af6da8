#include "tokenizer/normal_forms.h"

#include <algorithm>
#include <optional>

#include "tokenizer/unicode.h"

namespace cpuc {

namespace {

// The parts of decompositions. The library does not sort the origins along with the marks: the n-th first part of a
// decomposition, wherever it lands, comes from the n-th character, and further parts from the last one counted so.
class Decomposer {
 public:
  explicit Decomposer(size_t size) { parts_.reserve(size); }

  void push(char32_t value, bool first) {
    const int combining_class = unicode::combining_class(value);
    if (combining_class == 0) sort();
    parts_.push_back({value, first ? 0 : 1});
    classes_.push_back(combining_class);
  }

  std::vector<Change> finish() {
    sort();
    return std::move(parts_);
  }

 private:
  // By combining class, the parts that wait for it. A starter, which has class 0, comes first and stays there.
  void sort() {
    const size_t sorted = parts_.size() - classes_.size();
    for (size_t i = 1; i < classes_.size(); ++i)
      if (classes_[i - 1] > classes_[i]) {
        sort_from(sorted);
        break;
      }
    classes_.clear();
  }

  void sort_from(size_t begin) {
    std::stable_sort(parts_.begin() + static_cast<std::ptrdiff_t>(begin), parts_.end(),
                     [](const Change& one, const Change& other) {
                       return unicode::combining_class(one.value) < unicode::combining_class(other.value);
                     });
  }

  std::vector<Change> parts_;
  std::vector<int> classes_;  // of the parts at the end that are not sorted
};

}  // namespace

std::vector<Change> decompose(const Text& text, bool compatible) {
  Decomposer decomposer(text.size());
  for (const Character& each : text) {
    bool first = true;
    const auto push = [&](char32_t value) {
      decomposer.push(value, first);
      first = false;
    };
    if (compatible) {
      for (const char32_t value : unicode::decompose_compatible(each.value)) push(value);
    } else {
      const unicode::Expansion parts = unicode::decompose(each.value);
      std::for_each_n(parts.characters.begin(), parts.size, push);
    }
  }
  return decomposer.finish();
}

std::vector<Change> recompose(const std::vector<Change>& decomposed) {
  std::vector<Change> result;
  result.reserve(decomposed.size());
  std::optional<size_t> starter;  // its place in the result
  int last_class = 0;             // of the marks after it
  for (const Change& part : decomposed) {
    const int combining_class = unicode::combining_class(part.value);
    const bool blocked = last_class != 0 && last_class >= combining_class;
    if (starter && !blocked) {
      Change& before = result[*starter];
      if (const auto composed = unicode::compose(before.value, part.value)) {
        before = {*composed, before.change + part.change - 1};
        continue;
      }
    }
    if (combining_class == 0) starter = result.size();
    if (starter) last_class = combining_class;
    result.push_back(part);
  }
  return result;
}

}  // namespace cpuc
