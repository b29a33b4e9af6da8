// JSON of users: read as strictly as runtime/records.py reads it, and written as Python's json module writes it.
#pragma once

#include <exception>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace cpuc {

using Json = nlohmann::ordered_json;  // answers repeat a record's id with its fields in their order

class JsonError final : public std::exception {
 public:
  enum class Kind { syntax, depth, digits };

  // `byte` is where reading stopped; it counts from 0 and only a syntax error has it.
  JsonError(Kind what_failed, size_t byte_read, std::string message) : kind(what_failed), byte(byte_read), reason_(std::move(message)) {}
  const char* what() const noexcept override { return reason_.c_str(); }

  Kind kind;
  size_t byte;

 private:
  std::string reason_;
};

// One value. Throws JsonError: no JSON, nested more than 500 deep, or a whole number of more than 64 bits.
Json parse_json(std::string_view text);

// On one line, or with `indent` spaces a level on several. Numbers are the shortest decimals that read back as they are.
std::string write_json(const Json& value, size_t indent = 0);

// What Python calls the value's type, and how its repr writes the value.
std::string python_type(nlohmann::detail::value_t type);
std::string python_repr(const Json& value);

}  // namespace cpuc
