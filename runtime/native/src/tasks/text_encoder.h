// The bundle's tokenizer, and what the text tasks ask of it, as runtime/text.py's TextEncoder.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "manifest.h"
#include "tokenizer/tokenizer.h"

namespace cpuc {

// Methods may be called from several threads.
class TextEncoder {
 public:
  // Throws Error (bundle) if the manifest's inputs are not those of a text model, or the tokenizer is of a kind that is not supported.
  TextEncoder(const Manifest& manifest, std::string_view tokenizer_json);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  bool pads_right() const { return pads_right_; }
  // The most tokens of a row, if the model has a bound.
  std::optional<size_t> maximum() const { return maximum_; }

  // The encoding of a text or a pair as it is, or cut and with its windows. Throws Error (bundle) if the tokenizer fails.
  std::vector<Encoding> tokenize(const std::string& text, const std::optional<std::string>& pair, const std::string& where,
                                 const Truncation* truncation = nullptr) const;

  struct Limits {
    std::optional<Strategy> cut = {};    // how to shorten what is too long; nothing refuses it
    std::optional<size_t> length = {};   // the most tokens, or what the model takes if that is less
    bool hint = true;                    // whether the task has the option that cuts
  };
  // One row. Throws Error (input) if the text is too long or has no token.
  Encoding encode(const std::string& text, const std::optional<std::string>& pair, const std::string& where, const Limits& limits) const;

 private:
  Encoding cut(const std::string& text, const std::optional<std::string>& pair, const std::string& where, Strategy strategy, size_t most) const;

  Tokenizer tokenizer_;
  bool pads_right_ = true, cuts_left_ = false;
  std::optional<size_t> maximum_;
};

}  // namespace cpuc
