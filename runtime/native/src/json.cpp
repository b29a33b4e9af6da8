#include "json.h"

#include <cmath>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text.h"

namespace cpuc {
namespace {

using value_t = nlohmann::detail::value_t;

constexpr size_t deepest = 500;  // values are written by recursion

// Builds a value from what the parser meets: the library's own builder takes whole numbers of more than 64 bits for others.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Json value;

  bool null() override { return put(nullptr); }
  bool boolean(bool given) override { return put(given); }
  bool number_integer(number_integer_t given) override { return put(given); }
  bool number_unsigned(number_unsigned_t given) override { return put(given); }
  bool number_float(number_float_t given, const string_t& digits) override {
    if (digits.find_first_of(".eE") == string_t::npos)
      throw JsonError(JsonError::Kind::digits, 0, "a whole number has more than 64 bits: write it as a string");
    return put(given);
  }
  bool string(string_t& given) override { return put(std::move(given)); }
  bool binary(binary_t& given) override { return put(Json::binary(std::move(given))); }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    // The object itself would look through all its fields.
    auto& fields = open_.back()->get_ref<Json::object_t&>();
    const auto [known, added] = places_.back().emplace(name, fields.size());
    if (added) fields.Json::object_t::Container::emplace_back(std::move(name), nullptr);
    field_ = &fields.Json::object_t::Container::operator[](known->second).second;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    throw JsonError(JsonError::Kind::syntax, position == 0 ? 0 : position - 1, reason(error.what()));
  }

 private:
  Json* place(Json&& given) {
    Json* target = &value;
    if (!open_.empty() && open_.back()->is_array()) {
      open_.back()->push_back(nullptr);
      target = &open_.back()->back();
    } else if (!open_.empty()) {
      target = field_;
    }
    *target = std::move(given);
    return target;
  }

  bool put(Json given) {
    place(std::move(given));
    return true;
  }

  bool open(Json given) {
    if (open_.size() == deepest) throw JsonError(JsonError::Kind::depth, 0, "nested too deeply");
    open_.push_back(place(std::move(given)));
    places_.emplace_back();
    return true;
  }

  bool close() {
    open_.pop_back(), places_.pop_back();
    return true;
  }

  // Without the library's name, the position and the bytes that it last read, which may be anything.
  static std::string reason(const std::string& message) {
    const size_t begin = message.find(" - "), read = message.find("; last read: ");
    if (begin == std::string::npos) {
      const size_t colon = message.rfind(": ");  // a number out of range
      return colon == std::string::npos ? message : message.substr(colon + 2);
    }
    const size_t expected = message.rfind("; expected ");
    std::string text = message.substr(begin + 3, read == std::string::npos ? expected - begin - 3 : read - begin - 3);
    if (expected != std::string::npos && expected > begin) text += message.substr(expected);
    return text;
  }

  std::vector<Json*> open_;
  std::vector<std::unordered_map<std::string, size_t>> places_;  // of the fields of each that is open
  Json* field_ = nullptr;
};

std::string number(const Json& value) {
  if (value.is_number_float()) return number_text(value.get<double>());
  return value.is_number_unsigned() ? std::to_string(value.get<uint64_t>()) : std::to_string(value.get<int64_t>());
}

void write(const Json& value, size_t indent, size_t depth, std::string& into) {
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    into += "null";
  } else if (value.is_number()) {
    into += number(value);
  } else if (!value.is_structured() || value.empty()) {
    into += value.dump();
  } else {
    const std::string line = indent == 0 ? "" : "\n" + std::string(indent * (depth + 1), ' ');
    into += value.is_array() ? '[' : '{';
    bool first = true;
    for (const auto& item : value.items()) {
      if (!first) into += indent == 0 ? ", " : ",";
      first = false, into += line;
      if (value.is_object()) into += Json(item.key()).dump() + ": ";
      write(item.value(), indent, depth + 1, into);
    }
    if (indent > 0) into += "\n" + std::string(indent * depth, ' ');
    into += value.is_array() ? ']' : '}';
  }
}

}  // namespace

Json parse_json(std::string_view text) {
  Builder builder;
  Json::sax_parse(text, &builder);
  // To the library a NUL byte is the end of the text.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) throw JsonError(JsonError::Kind::syntax, nul, "a NUL byte");
  return std::move(builder.value);
}

std::string write_json(const Json& value, size_t indent) {
  std::string text;
  write(value, indent, 0, text);
  return text;
}

std::string python_type(value_t type) {
  switch (type) {
    case value_t::null: return "NoneType";
    case value_t::boolean: return "bool";
    case value_t::string: return "str";
    case value_t::array: return "list";
    case value_t::object: return "dict";
    case value_t::number_float: return "float";
    default: return "int";
  }
}

std::string python_repr(const Json& value) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) return in_quotes(value.get_ref<const std::string&>());
  if (!value.is_structured()) return number(value);
  std::string text;
  for (const auto& item : value.items()) {
    text += text.empty() ? "" : ", ";
    if (value.is_object()) text += in_quotes(item.key()) + ": ";
    text += python_repr(item.value());
  }
  return value.is_array() ? "[" + text + "]" : "{" + text + "}";
}

}  // namespace cpuc
