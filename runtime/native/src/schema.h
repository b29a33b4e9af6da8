// A description of JSON that can be checked against, with the words of runtime/manifest.py's `decode`.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace cpuc {

// What a value must be. `name` is the type as Python writes it; `check` looks into a value that `fits`.
struct Type {
  std::string name;
  std::function<bool(const nlohmann::json&)> fits;
  std::function<void(const nlohmann::json&, const std::string& where)> check;

  // Throws Error naming the place and what was found there.
  void operator()(const nlohmann::json& value, const std::string& where) const;
};

namespace schema {

using Fields = std::vector<std::pair<std::string, Type>>;

Type text();
Type integer();
Type boolean();
Type number();
Type list(const Type& item);
Type dict(const Type& value);
Type anything_by_name();
Type object(const Fields& fields);
Type either(const Type& first, const Type& second);
Type or_null(const Type& type);

}  // namespace schema
}  // namespace cpuc
