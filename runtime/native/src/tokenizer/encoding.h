// What a tokenizer makes of a text or a pair, and how that is cut and put together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace cpuc {

// One row of tokens. All vectors have the same length.
struct Encoding {
  std::vector<int64_t> ids, type_ids;
  std::vector<std::string> tokens;
  std::vector<std::pair<size_t, size_t>> offsets;  // characters (code points) of the original text
  std::vector<int> special_tokens_mask;
  std::vector<std::optional<size_t>> word_ids;
  std::vector<std::optional<size_t>> sequence_ids;  // 0, 1, or nothing for special tokens
  // Which tokens a sequence has, from and to; without an entry it has all of them.
  std::map<size_t, std::pair<size_t, size_t>> sequence_ranges;

  size_t size() const { return ids.size(); }

  // The characters of a word of a sequence; nothing if the row does not have that word.
  std::optional<std::pair<size_t, size_t>> word_to_chars(size_t word, size_t sequence) const;

  void push(int64_t id, std::string token, int64_t type_id, std::pair<size_t, size_t> characters,
            std::optional<size_t> word_id, bool special);
};

enum class Strategy { longest_first, only_first, only_second };

struct Truncation {
  size_t length;  // of a row, special tokens included
  size_t stride = 0;  // how many tokens of a window the next one has again
  Strategy strategy = Strategy::longest_first;
  bool left = false;  // cut the beginning
  bool windows = true;  // give the rows of what was cut off, too
};

// A row, and the rows for what was cut off.
struct Windows {
  Encoding main;
  std::vector<Encoding> overflowing;
};

// All tokens become those of a sequence.
void set_sequence(Encoding& encoding, size_t sequence);

// Fills in `sequence_ids`.
void list_sequences(Encoding& encoding);

void append(Encoding& encoding, const Encoding& other);

// Puts `other` after `windows`, and each window of the one after each of the other.
void append(Windows& windows, const Windows& other);

// Cuts one or two sequences so that they have at most `limits.length` tokens together. Throws Error (bundle) where the
// `tokenizers` library fails, with its message.
void truncate(std::vector<Windows>& sequences, const Truncation& limits);

}  // namespace cpuc
