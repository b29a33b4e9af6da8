#include "schema.h"

#include <algorithm>

#include "error.h"
#include "json.h"
#include "text.h"

namespace cpuc {
namespace {

using nlohmann::json;

// Beyond 64 bits Python still has an integer, and this library a float: no field holds such a number.
bool is_integer(const json& value) { return value.is_number_integer(); }

const auto nothing = [](const json&, const std::string&) {};

}  // namespace

void Type::operator()(const json& value, const std::string& where) const {
  if (!fits(value)) throw Error(Kind::bundle, where + ": expected " + name + ", found " + python_type(value.type()));
  check(value, where);
}

namespace schema {

Type text() {
  return {"str", [](const json& value) { return value.is_string(); }, nothing};
}

Type integer() { return {"int", is_integer, nothing}; }

Type boolean() {
  return {"bool", [](const json& value) { return value.is_boolean(); }, nothing};
}

Type number() {
  return {"float", [](const json& value) { return value.is_number(); }, nothing};
}

Type list(const Type& item) {
  const auto each = [item](const json& value, const std::string& where) {
    for (size_t i = 0; i < value.size(); ++i) item(value[i], where + "[" + std::to_string(i) + "]");
  };
  return {"list", [](const json& value) { return value.is_array(); }, each};
}

Type dict(const Type& value) {
  const auto each = [value](const json& object, const std::string& where) {
    for (const auto& [key, inner] : object.items()) value(inner, where + "." + key);
  };
  return {"dict", [](const json& object) { return object.is_object(); }, each};
}

Type anything_by_name() {
  return {"dict", [](const json& object) { return object.is_object(); }, nothing};
}

Type object(const Fields& fields) {
  const auto each = [fields](const json& value, const std::string& where) {
    for (const auto& [key, inner] : value.items()) {
      const bool known = std::any_of(fields.begin(), fields.end(), [&name = key](const auto& field) { return field.first == name; });
      if (!known) throw Error(Kind::bundle, where + ": unknown field " + in_quotes(key));
    }
    for (const auto& [name, type] : fields) {
      if (!value.contains(name)) throw Error(Kind::bundle, where + ": field " + in_quotes(name) + " is missing");
    }
    for (const auto& [name, type] : fields) type(value[name], where + "." + name);
  };
  return {"an object", [](const json& value) { return value.is_object(); }, each};
}

Type either(const Type& first, const Type& second) {
  const auto each = [first, second](const json& value, const std::string& where) {
    (first.fits(value) ? first : second).check(value, where);
  };
  return {first.name + " | " + second.name, [first, second](const json& value) { return first.fits(value) || second.fits(value); }, each};
}

Type or_null(const Type& type) {
  return either(type, {"None", [](const json& value) { return value.is_null(); }, nothing});
}

}  // namespace schema
}  // namespace cpuc
