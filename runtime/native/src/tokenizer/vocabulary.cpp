#include "tokenizer/vocabulary.h"

#include <nlohmann/json.hpp>

namespace cpuc {

std::string byte_token(char byte) {
  static constexpr char digits[] = "0123456789ABCDEF";
  const auto value = static_cast<unsigned char>(byte);
  return std::string("<0x") + digits[value >> 4] + digits[value & 15] + ">";
}

Vocabulary::Vocabulary(const Fields& fields, const char* name) {
  const Fields vocabulary = fields.object(name);
  const nlohmann::json& entries = fields.at(name);
  ids_.reserve(entries.size());
  tokens_.reserve(entries.size());
  for (const auto& [token, value] : entries.items()) {
    if (!value.is_number_unsigned()) vocabulary.fail("the id of '" + token + "' must be an integer from 0 to 4294967295");
    const int64_t id = to_id(value, vocabulary.where());
    ids_.emplace(token, id);
    tokens_.emplace(id, token);
  }
}

std::optional<int64_t> Vocabulary::id(const std::string& token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<std::string> Vocabulary::token(int64_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? std::nullopt : std::optional(found->second);
}

}  // namespace cpuc
