#include "tensors.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <utility>

#include "error.h"
#include "json.h"
#include "records.h"
#include "text.h"

namespace cpuc {
namespace {

using json = Json;

const std::vector<std::pair<std::string, at::ScalarType>> dtypes = {
    {"bool", at::kBool}, {"int32", at::kInt},    {"int64", at::kLong},
    {"float16", at::kHalf}, {"float32", at::kFloat}, {"float64", at::kDouble},
};

[[noreturn]] void wrong(const std::string& message) { throw Error(Kind::input, message); }

// The values of nested lists, flat, and the lists' shape.
struct Nested {
  std::vector<int64_t> shape;
  std::vector<const json*> values;
};

void flatten(const json& value, size_t depth, Nested& into, const std::string& where) {
  const bool is_list = value.is_array(), known = depth < into.shape.size();
  if (is_list != known || (is_list && static_cast<int64_t>(value.size()) != into.shape[depth]))
    wrong(where + ": rows have different lengths; pad them");
  if (!is_list) return into.values.push_back(&value);
  for (const json& inner : value) flatten(inner, depth + 1, into, where);
}

Nested nested(const json& value, const std::string& where) {
  constexpr size_t deepest = 64;
  Nested found;
  for (const json* inner = &value; inner->is_array() && found.shape.size() < deepest; inner = &(*inner)[0]) {
    found.shape.push_back(static_cast<int64_t>(inner->size()));
    if (inner->empty()) break;
  }
  flatten(value, 0, found, where);
  return found;
}

// The dtype that numpy would give the values.
std::string kind_of(const Nested& nested) {
  bool numbers = true, integers = true, booleans = true;
  for (const json* value : nested.values) {
    numbers = numbers && value->is_number(), integers = integers && value->is_number_integer();
    booleans = booleans && value->is_boolean();
  }
  if (nested.values.empty()) return "float64";
  return integers ? "int64" : numbers ? "float64" : booleans ? "bool" : "object";
}

at::Tensor make_tensor(const Nested& nested, const TensorSpec& spec, const std::string& where) {
  const std::string kind = kind_of(nested);
  const bool whole = spec.dtype.rfind("int", 0) == 0, logical = spec.dtype == "bool";
  const bool fits = nested.values.empty() || (logical ? kind == "bool" : kind == "int64" || (!whole && kind == "float64"));
  if (!fits) wrong(where + " is " + kind + ", expected " + spec.dtype);
  const at::ScalarType dtype = dtype_of(spec.dtype);
  at::Tensor wide = at::empty(nested.shape, at::TensorOptions(logical ? at::kBool : whole ? at::kLong : at::kDouble));
  for (size_t i = 0; i < nested.values.size(); ++i) {
    const json& value = *nested.values[i];
    if (logical) {
      wide.data_ptr<bool>()[i] = value.get<bool>();
    } else if (whole) {
      const int64_t least = dtype == at::kInt ? std::numeric_limits<int32_t>::min() : std::numeric_limits<int64_t>::min();
      const int64_t most = dtype == at::kInt ? std::numeric_limits<int32_t>::max() : std::numeric_limits<int64_t>::max();
      const bool large = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(most);
      if (large || value.get<int64_t>() < least) wrong(where + " holds values that " + spec.dtype + " cannot hold");
      wide.data_ptr<int64_t>()[i] = value.get<int64_t>();
    } else {
      wide.data_ptr<double>()[i] = value.get<double>();
    }
  }
  return wide.to(dtype);
}

void write(const at::Tensor& tensor, std::string& into) {
  if (tensor.dim() == 0) {
    const double value = tensor.item<double>();
    into += tensor.is_floating_point() ? (std::isfinite(value) ? number_text(value) : "null") : std::to_string(tensor.item<int64_t>());
    return;
  }
  into += "[";
  const bool row = tensor.dim() == 1 && tensor.scalar_type() == at::kFloat;
  const float* values = row ? tensor.const_data_ptr<float>() : nullptr;
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    if (i > 0) into += ", ";
    if (!row) write(tensor[i], into);
    else into += std::isfinite(values[i]) ? number_text(static_cast<double>(values[i])) : "null";
  }
  into += "]";
}

std::string list_text(at::IntArrayRef sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

std::string shape_text(const TensorSpec& spec) {
  std::string text = "[";
  for (size_t i = 0; i < spec.shape.size(); ++i) {
    const auto* size = std::get_if<int64_t>(&spec.shape[i]);
    text += (i > 0 ? ", " : "") + (size != nullptr ? std::to_string(*size) : in_quotes(std::get<std::string>(spec.shape[i])));
  }
  return text + "]";
}

using Sizes = std::map<std::string, std::pair<int64_t, std::string>>;

void check_axis(const Manifest& manifest, const TensorSpec& spec, const std::string& axis, const at::Tensor& tensor, int64_t size, Sizes& sizes) {
  const Axis& bounds = manifest.axes.at(axis);
  if (size < bounds.minimum || (bounds.maximum && size > *bounds.maximum)) {
    const std::string most = bounds.maximum ? " and at most " + std::to_string(*bounds.maximum) : "";
    wrong("input " + in_quotes(spec.name) + " has shape " + list_text(tensor.sizes()) + ": " + axis + " is " + std::to_string(size) +
          ", must be at least " + std::to_string(bounds.minimum) + most);
  }
  const auto& first = sizes.emplace(axis, std::make_pair(size, spec.name)).first->second;
  if (first.first != size)
    wrong("inputs " + in_quotes(first.second) + " and " + in_quotes(spec.name) + " differ in " + axis + ": " + std::to_string(first.first) + " and " +
          std::to_string(size));
}

void check_tensor(const Manifest& manifest, const TensorSpec& spec, const at::Tensor& tensor, Sizes& sizes) {
  const std::string name = "input " + in_quotes(spec.name);
  if (tensor.scalar_type() != dtype_of(spec.dtype))
    wrong(name + " is " + at::toString(tensor.scalar_type()) + ", expected " + spec.dtype);
  const std::string odd = name + " has shape " + list_text(tensor.sizes()) + ", expected " + shape_text(spec);
  if (tensor.dim() != static_cast<int64_t>(spec.shape.size())) wrong(odd);
  for (size_t i = 0; i < spec.shape.size(); ++i) {
    const int64_t size = tensor.size(static_cast<int64_t>(i));
    if (const auto* axis = std::get_if<std::string>(&spec.shape[i])) check_axis(manifest, spec, *axis, tensor, size, sizes);
    else if (size != std::get<int64_t>(spec.shape[i])) wrong(odd);
  }
  if (!spec.minimum || !spec.maximum) return;
  const auto [low, high] = at::aminmax(tensor);
  const auto least = low.item<int64_t>(), most = high.item<int64_t>();
  if (least < *spec.minimum || most > *spec.maximum)
    wrong(name + " holds " + std::to_string(least < *spec.minimum ? least : most) + ", must be " + std::to_string(*spec.minimum) + " to " +
          std::to_string(*spec.maximum));
}

}  // namespace

at::ScalarType dtype_of(const std::string& name) {
  for (const auto& [known, type] : dtypes) {
    if (known == name) return type;
  }
  throw Error(Kind::bundle, "dtype " + in_quotes(name) + " is unknown");
}

Tensors parse_tensors(const std::string& data, const std::string& source, const Manifest& manifest) {
  const json value = parse_input(data, source);
  if (!value.is_object()) wrong(source + ": expected an object of named tensors, found " + python_type(value.type()));
  std::string names;
  for (const TensorSpec& spec : manifest.inputs) names += (names.empty() ? "" : ", ") + spec.name;
  Tensors tensors;
  for (const auto& [name, lists] : value.items()) {
    const TensorSpec* spec = nullptr;
    for (const TensorSpec& each : manifest.inputs) {
      if (each.name == name) spec = &each;
    }
    if (spec == nullptr) wrong("unexpected input " + in_quotes(name) + "; the model takes " + names);
    const std::string where = source + ": " + in_quotes(name);
    tensors[name] = make_tensor(nested(lists, where), *spec, where);
  }
  return tensors;
}

std::string format_tensors(const Tensors& outputs, const Manifest& manifest) {
  std::string text;
  for (const TensorSpec& spec : manifest.outputs) {
    text += (text.empty() ? "{" : ", ") + json(spec.name).dump() + ": ";
    write(outputs.at(spec.name).contiguous(), text);
  }
  return text + "}\n";
}

void check_inputs(const Manifest& manifest, const Tensors& inputs) {
  std::string names;
  for (const TensorSpec& spec : manifest.inputs) names += (names.empty() ? "" : ", ") + spec.name;
  Sizes sizes;
  for (const TensorSpec& spec : manifest.inputs) {
    const auto found = inputs.find(spec.name);
    if (found == inputs.end()) wrong("input " + in_quotes(spec.name) + " is missing; the model takes " + names);
    check_tensor(manifest, spec, found->second, sizes);
  }
}

}  // namespace cpuc
