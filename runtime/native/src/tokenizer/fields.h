// Reading the objects of tokenizer.json.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace cpuc {

// An object of tokenizer.json and its place there, which errors name. All methods throw Error (bundle) if a field is
// missing or of another type. Fields that nobody asks for are ignored, as the `tokenizers` library does.
class Fields {
 public:
  Fields(const nlohmann::json& value, std::string where);

  const std::string& where() const { return where_; }
  bool has(const char* name) const;  // there and not null
  const nlohmann::json& at(const char* name) const;
  bool boolean(const char* name) const;
  bool boolean(const char* name, bool otherwise) const;  // null, or absent: `otherwise`
  std::string string(const char* name) const;
  int64_t unsigned32(const char* name) const;
  Fields object(const char* name) const;
  const nlohmann::json& array(const char* name) const;
  std::vector<Fields> objects(const char* name) const;  // of a list
  std::string type() const;  // of a component, "" if it does not say

  [[noreturn]] void fail(const std::string& what) const;
  [[noreturn]] void refuse() const;  // a component of a type that is not supported
  [[noreturn]] void refuse(const std::string& what) const;

 private:
  const nlohmann::json& value_;
  std::string where_;
};

// An id: an integer of 32 bits without sign. Throws Error naming `where` otherwise.
int64_t to_id(const nlohmann::json& value, const std::string& where);

}  // namespace cpuc
