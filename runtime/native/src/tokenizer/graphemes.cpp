#include "tokenizer/graphemes.h"

#include <utf8proc.h>

#include "tokenizer/grapheme_tables.h"
#include "tokenizer/ranges.h"

namespace cpuc {

namespace {

using unicode::Boundary;
using unicode::find;

Boundary from_utf8proc(char32_t character) {
  switch (utf8proc_get_property(static_cast<utf8proc_int32_t>(character))->boundclass) {
    case UTF8PROC_BOUNDCLASS_CR: return Boundary::cr;
    case UTF8PROC_BOUNDCLASS_LF: return Boundary::lf;
    case UTF8PROC_BOUNDCLASS_CONTROL: return Boundary::control;
    case UTF8PROC_BOUNDCLASS_EXTEND: return Boundary::extend;
    case UTF8PROC_BOUNDCLASS_L: return Boundary::l;
    case UTF8PROC_BOUNDCLASS_V: return Boundary::v;
    case UTF8PROC_BOUNDCLASS_T: return Boundary::t;
    case UTF8PROC_BOUNDCLASS_LV: return Boundary::lv;
    case UTF8PROC_BOUNDCLASS_LVT: return Boundary::lvt;
    case UTF8PROC_BOUNDCLASS_REGIONAL_INDICATOR: return Boundary::regional;
    case UTF8PROC_BOUNDCLASS_SPACINGMARK: return Boundary::spacing;
    case UTF8PROC_BOUNDCLASS_PREPEND: return Boundary::prepend;
    case UTF8PROC_BOUNDCLASS_ZWJ: return Boundary::joiner;
    case UTF8PROC_BOUNDCLASS_EXTENDED_PICTOGRAPHIC: return Boundary::emoji;
    default: return Boundary::other;
  }
}

Boundary boundary_of(char32_t character) {
  if (const unicode::BoundaryRange* entry = find(unicode::kBoundaries, character)) return entry->boundary;
  if (find(unicode::kConsonants, character)) return Boundary::consonant;
  return from_utf8proc(character);
}

// A cluster as far as it has been read.
class Cluster {
 public:
  explicit Cluster(char32_t first) { read(first, boundary_of(first)); }

  // Reads the next character if it belongs to the cluster.
  bool takes(char32_t character) {
    const Boundary next = boundary_of(character);
    if (!joins(next)) return false;
    read(character, next);
    return true;
  }

 private:
  static bool is_control(Boundary boundary) {
    return boundary == Boundary::control || boundary == Boundary::cr || boundary == Boundary::lf;
  }

  // The rules GB3 to GB13, in their order.
  bool joins(Boundary next) const {
    if (last_ == Boundary::cr && next == Boundary::lf) return true;
    if (is_control(last_) || is_control(next)) return false;
    if (joins_hangul(next)) return true;
    if (next == Boundary::extend || next == Boundary::joiner || next == Boundary::spacing) return true;
    if (last_ == Boundary::prepend) return true;
    if (next == Boundary::consonant) return consonant_ && linker_;
    if (next == Boundary::emoji) return emoji_ && last_ == Boundary::joiner;
    return next == Boundary::regional && last_ == Boundary::regional && odd_regional_;
  }

  bool joins_hangul(Boundary next) const {
    const bool vowel = next == Boundary::v, final = next == Boundary::t;
    if (last_ == Boundary::l) return next == Boundary::l || vowel || next == Boundary::lv || next == Boundary::lvt;
    if (last_ == Boundary::lv || last_ == Boundary::v) return vowel || final;
    return (last_ == Boundary::lvt || last_ == Boundary::t) && final;
  }

  void read(char32_t character, Boundary boundary) {
    const bool linker = find(unicode::kLinkers, character) != nullptr;
    // U+200C extends, but ends a conjunct.
    const bool extends = (boundary == Boundary::extend && character != 0x200c) || boundary == Boundary::joiner;
    if (boundary == Boundary::consonant || !extends) linker_ = false;
    consonant_ = boundary == Boundary::consonant || (consonant_ && extends);
    linker_ = linker_ || linker;
    // Of an emoji, what extends it, and a joiner.
    const bool after_emoji = emoji_ && last_ != Boundary::joiner;
    emoji_ = boundary == Boundary::emoji || (after_emoji && (boundary == Boundary::extend || boundary == Boundary::joiner));
    odd_regional_ = boundary == Boundary::regional && !odd_regional_;
    last_ = boundary;
  }

  Boundary last_ = Boundary::other;
  bool consonant_ = false, linker_ = false;  // a consonant that only marks follow, and one that links among them
  bool emoji_ = false;
  bool odd_regional_ = false;
};

}  // namespace

size_t end_of_grapheme(const Text& text, size_t begin) {
  const auto is_plain = [](char32_t character) { return character >= ' ' && character < 0x7f; };
  size_t end = begin + 1;
  if (end == text.size() || (is_plain(text[begin].value) && is_plain(text[end].value))) return end;
  Cluster cluster(text[begin].value);
  while (end < text.size() && cluster.takes(text[end].value)) ++end;
  return end;
}

}  // namespace cpuc
