// The pre-tokenizer Split, at a string.
#include <algorithm>
#include <iterator>
#include <utility>

#include "tokenizer/makers.h"

namespace cpuc {

namespace {

// Characters `begin` to `end` of a text, which are what is split at or what is between.
struct Part {
  size_t begin, end;
  bool delimiter;
};

// What becomes of a delimiter: in these two it goes with its neighbour, unless that is a delimiter too.
std::vector<Part> merged_with_previous(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  bool after_delimiter = false;
  for (const Part& part : parts) {
    if (part.delimiter && !after_delimiter && !merged.empty())
      merged.back().end = part.end;
    else
      merged.push_back(part);
    after_delimiter = part.delimiter;
  }
  return merged;
}

std::vector<Part> merged_with_next(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  for (size_t i = 0; i < parts.size(); ++i) {
    const bool with_next = parts[i].delimiter && i + 1 < parts.size() && !parts[i + 1].delimiter;
    merged.push_back(parts[i]);
    if (with_next) merged.back().end = parts[++i].end;
  }
  return merged;
}

std::vector<Part> contiguous(const std::vector<Part>& parts) {
  std::vector<Part> merged;
  for (const Part& part : parts) {
    if (!merged.empty() && merged.back().delimiter == part.delimiter)
      merged.back().end = part.end;
    else
      merged.push_back(part);
  }
  return merged;
}

std::vector<Part> isolated(const std::vector<Part>& parts) { return parts; }

std::vector<Part> removed(const std::vector<Part>& parts) {
  std::vector<Part> kept;
  std::copy_if(parts.begin(), parts.end(), std::back_inserter(kept), [](const Part& each) { return !each.delimiter; });
  return kept;
}

using Merge = std::vector<Part> (*)(const std::vector<Part>& parts);

constexpr std::pair<const char*, Merge> behaviors[] = {{"Contiguous", contiguous},
                                                       {"Isolated", isolated},
                                                       {"MergedWithNext", merged_with_next},
                                                       {"MergedWithPrevious", merged_with_previous},
                                                       {"Removed", removed}};

class Split : public PreTokenizer {
 public:
  explicit Split(const Fields& fields) : invert_(fields.boolean("invert")) {
    const Fields pattern = fields.object("pattern");
    if (!pattern.has("String")) pattern.refuse("a regular expression");
    pattern_ = to_text(pattern.string("String"));
    if (pattern_.empty()) pattern.refuse("an empty string");
    const std::string behavior = fields.string("behavior");
    for (const auto& [name, merge] : behaviors)
      if (behavior == name) merge_ = merge;
    if (!merge_) fields.refuse("behavior '" + behavior + "'");
  }

  std::vector<Text> split(const Text& text) const override {
    std::vector<Text> words;
    const auto place = [&](size_t index) { return text.begin() + static_cast<std::ptrdiff_t>(index); };
    for (const Part& part : merge_(parts_of(text))) words.emplace_back(place(part.begin), place(part.end));
    return words;
  }

 private:
  std::vector<Part> parts_of(const Text& text) const {
    const auto same = [](const Character& one, const Character& other) { return one.value == other.value; };
    std::vector<Part> parts;
    for (auto at = text.begin(); at != text.end();) {
      const auto begin = std::search(at, text.end(), pattern_.begin(), pattern_.end(), same);
      const auto index = [&](Text::const_iterator place) { return static_cast<size_t>(place - text.begin()); };
      if (begin != at) parts.push_back({index(at), index(begin), invert_});
      if (begin == text.end()) break;
      at = begin + static_cast<std::ptrdiff_t>(pattern_.size());
      parts.push_back({index(begin), index(at), !invert_});
    }
    return parts;
  }

  bool invert_;
  Merge merge_ = nullptr;
  Text pattern_;
};

}  // namespace

std::unique_ptr<const PreTokenizer> split_pre_tokenizer(const Fields& fields) { return std::make_unique<Split>(fields); }

}  // namespace cpuc
