// A tokenizer.json of Hugging Face's `tokenizers` library, and the same tokens that the library makes with it.
//
// What is supported: the models WordPiece, BPE and Unigram, added tokens, and the components that the tables of
// make_normalizer, make_pre_tokenizer, make_post_processor and make_decoder list. Everything else is refused by name.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/encoding.h"

namespace cpuc {

// Methods may be called from several threads; copies share their contents.
class Tokenizer {
 public:
  // Throws Error (bundle) that names what is wrong or not supported. Truncation and padding in the file are ignored.
  static Tokenizer from_json(std::string_view json);

  // The encoding of a text or a pair; with `truncation`, cut to its length, and after it the encodings of what was cut off.
  // Throws Error: of kind input if a text is not UTF-8, of kind bundle where the library fails.
  std::vector<Encoding> encode(std::string_view text, std::optional<std::string_view> pair = {},
                               const Truncation* truncation = nullptr, bool add_special_tokens = true) const;

  // Ids without a token are left out.
  std::string decode(const std::vector<int64_t>& ids, bool skip_special_tokens) const;
  // The decoder alone; tokens with spaces between them if there is none.
  std::string decode_tokens(const std::vector<std::string>& tokens) const;

  std::optional<int64_t> token_to_id(std::string_view token) const;
  std::optional<std::string> id_to_token(int64_t id) const;
  // "" if the model has none.
  std::string continuing_subword_prefix() const;

 private:
  struct Parts;
  explicit Tokenizer(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}
  Encoding encode_sequence(std::string_view text, int64_t type_id) const;
  void check(const Truncation& truncation, bool pair, bool add_special_tokens) const;
  Windows process(std::vector<Windows> sequences, bool add_special_tokens) const;

  std::shared_ptr<const Parts> parts_;
};

}  // namespace cpuc
