// The tokens of a model and their ids.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "tokenizer/fields.h"

namespace cpuc {

// What a model with byte_fallback has for a byte, such as <0x0A>.
std::string byte_token(char byte);

class Vocabulary {
 public:
  // Of a field that is an object of tokens with their ids. Throws Error naming the token whose id is wrong.
  Vocabulary(const Fields& fields, const char* name);

  std::optional<int64_t> id(const std::string& token) const;
  std::optional<std::string> token(int64_t id) const;
  size_t size() const { return ids_.size(); }

 private:
  std::unordered_map<std::string, int64_t> ids_;
  std::unordered_map<int64_t, std::string> tokens_;
};

}  // namespace cpuc
