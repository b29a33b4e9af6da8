#include "tokenizer/fields.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "error.h"

namespace cpuc {

Fields::Fields(const nlohmann::json& value, std::string where) : value_(value), where_(std::move(where)) {
  if (!value_.is_object()) fail("is no object");
}

void Fields::fail(const std::string& what) const { throw Error(Kind::bundle, where_ + ": " + what); }

void Fields::refuse() const {
  const std::string name = type();
  refuse(name.empty() ? "a component without a type" : name);
}

void Fields::refuse(const std::string& what) const {
  fail(what + " is not supported by the native runtime: run this bundle with `cpuc run`, or give named tensors and use --raw");
}

bool Fields::has(const char* name) const {
  const auto found = value_.find(name);
  return found != value_.end() && !found->is_null();
}

const nlohmann::json& Fields::at(const char* name) const {
  const auto found = value_.find(name);
  if (found == value_.end()) fail(std::string("field '") + name + "' is missing");
  return *found;
}

bool Fields::boolean(const char* name) const {
  const nlohmann::json& value = at(name);
  if (!value.is_boolean()) fail(std::string("field '") + name + "' must be true or false");
  return value.get<bool>();
}

bool Fields::boolean(const char* name, bool otherwise) const { return has(name) ? boolean(name) : otherwise; }

std::string Fields::string(const char* name) const {
  const nlohmann::json& value = at(name);
  if (!value.is_string()) fail(std::string("field '") + name + "' must be a string");
  return value.get<std::string>();
}

int64_t Fields::unsigned32(const char* name) const { return to_id(at(name), where_ + "." + name); }

Fields Fields::object(const char* name) const { return {at(name), where_ + "." + name}; }

const nlohmann::json& Fields::array(const char* name) const {
  const nlohmann::json& value = at(name);
  if (!value.is_array()) fail(std::string("field '") + name + "' must be a list");
  return value;
}

std::vector<Fields> Fields::objects(const char* name) const {
  // Components are made by recursion.
  if (where_.size() > 1000) fail("is nested too deeply");
  std::vector<Fields> result;
  for (const nlohmann::json& each : array(name)) result.emplace_back(each, where_ + "." + name);
  return result;
}

std::string Fields::type() const { return has("type") ? string("type") : ""; }

int64_t to_id(const nlohmann::json& value, const std::string& where) {
  // An integer over 64 bits is a float here, and one without a sign is unsigned.
  const bool good = value.is_number_unsigned() && value.get<uint64_t>() <= std::numeric_limits<uint32_t>::max();
  if (!good) throw Error(Kind::bundle, where + ": must be an integer from 0 to 4294967295");
  return static_cast<int64_t>(value.get<uint64_t>());
}

}  // namespace cpuc
