#include "manifest.h"

#include <algorithm>
#include <array>
#include <set>

#include "error.h"
#include "schema.h"
#include "text.h"

namespace cpuc {
namespace {

using nlohmann::json;

constexpr int64_t format_version = 3;
constexpr int max_depth = 100;
const std::array<std::string, 6> dtypes = {"bool", "int32", "int64", "float16", "float32", "float64"};

Type manifest_type() {
  using namespace schema;
  const Type axis = object({{"minimum", integer()}, {"maximum", or_null(integer())}});
  const Type tensor = object({{"name", text()},
                              {"dtype", text()},
                              {"shape", list(either(integer(), text()))},
                              {"minimum", or_null(integer())},
                              {"maximum", or_null(integer())},
                              {"pad", or_null(integer())}});
  const Type source = object({{"id", text()}, {"revision", or_null(text())}, {"license", or_null(text())}, {"weights", text()}});
  const Type kept = object({{"name", text()}, {"dtype", text()}, {"error", number()}});
  const Type quantization = object({{"scheme", text()},
                                    {"rest", text()},
                                    {"sample", text()},
                                    {"records", integer()},
                                    {"layers", integer()},
                                    {"kept", list(kept)}});
  const Type trial = object({{"choice", text()}, {"form", text()}, {"ratios", list(number())}, {"kept", boolean()}});
  const Type tuning = object({{"cpu", text()},
                              {"cpus", integer()},
                              {"sizes", list(list(integer()))},
                              {"threads", integer()},
                              {"streams", integer()},
                              {"trials", list(trial)}});
  const Type build = object({{"precision", text()},
                             {"fuser", text()},
                             {"torch", text()},
                             {"ipex", text()},
                             {"isa", text()},
                             {"fused", dict(integer())},
                             {"unfused", dict(integer())},
                             {"quantization", or_null(quantization)},
                             {"tuning", or_null(tuning)}});
  const Type proof = object({{"inputs", integer()},
                             {"shapes", list(list(integer()))},
                             {"max_abs_difference", number()},
                             {"mean_abs_difference", number()},
                             {"max_relative_difference", number()},
                             {"rms_relative_difference", number()},
                             {"tolerance", number()},
                             {"answers", integer()},
                             {"answers_equal", integer()}});
  return object({{"format_version", integer()},
                 {"cpuc_version", text()},
                 {"task", text()},
                 {"architecture", text()},
                 {"source", source},
                 {"axes", dict(axis)},
                 {"inputs", list(tensor)},
                 {"outputs", list(tensor)},
                 {"preprocessing", anything_by_name()},
                 {"build", build},
                 {"proof", or_null(proof)},
                 {"members", dict(text())}});
}

[[noreturn]] void wrong(const std::string& message) { throw Error(Kind::bundle, message); }

std::optional<int64_t> optional_of(const json& value) {
  return value.is_null() ? std::nullopt : std::optional<int64_t>(value.get<int64_t>());
}

// A whole number of the manifest; the library keeps those from 2**63 on as unsigned.
bool in_range(const json& value) { return !value.is_number_unsigned() || value.get<uint64_t>() <= INT64_MAX; }

void check_tuning(const json& tuning) {
  if (tuning.is_null()) return;
  const json &cpus = tuning["cpus"], &threads = tuning["threads"], &streams = tuning["streams"];
  const bool numbers = in_range(cpus) && in_range(threads) && in_range(streams) && cpus.get<int64_t>() <= largest_size;
  const auto fits = [&](const json& count) { return 0 < count.get<int64_t>() && count.get<int64_t>() <= cpus.get<int64_t>(); };
  if (!numbers || !fits(threads) || !fits(streams)) wrong("manifest.json.build.tuning: threads and streams must be from 1 to cpus");
}

void check_axes(const json& axes) {
  for (const auto& [name, axis] : axes.items()) {
    const json &minimum = axis["minimum"], &maximum = axis["maximum"];
    const bool sizes = in_range(minimum) && (maximum.is_null() || in_range(maximum));
    const int64_t least = sizes ? minimum.get<int64_t>() : 0, most = !sizes || maximum.is_null() ? largest_size : maximum.get<int64_t>();
    if (!(0 < least && least <= most && most <= largest_size))
      wrong("manifest.json.axes." + name + ": " + minimum.dump() + " to " + (maximum.is_null() ? "None" : maximum.dump()) +
            " is no range of sizes");
  }
}

void check_tensors(const json& specs, const std::string& field, const json& axes) {
  std::set<std::string> names;
  for (const json& spec : specs) names.insert(spec["name"].get<std::string>());
  if (specs.empty() || names.size() < specs.size()) wrong("manifest.json." + field + ": is empty, or a name occurs twice");
  for (const json& spec : specs) {
    const auto dtype = spec["dtype"].get<std::string>();
    if (std::find(dtypes.begin(), dtypes.end(), dtype) == dtypes.end())
      wrong("manifest.json." + field + ": dtype " + in_quotes(dtype) + " is not one of bool, int32, int64, float16, float32, float64");
    for (const json& size : spec["shape"]) {
      if (size.is_string() && !axes.contains(size.get<std::string>()))
        wrong("manifest.json: axis " + in_quotes(size.get<std::string>()) + " has no entry in 'axes'");
      if (size.is_number() && !(in_range(size) && 0 < size.get<int64_t>() && size.get<int64_t>() <= largest_size))
        wrong("manifest.json." + field + ": " + size.dump() + " is no size");
    }
    for (const char* name : {"minimum", "maximum", "pad"}) {
      if (!in_range(spec[name])) wrong("manifest.json." + field + ": " + spec[name].dump() + " is out of range");
    }
  }
}

std::vector<TensorSpec> tensors_of(const json& specs) {
  std::vector<TensorSpec> found;
  for (const json& spec : specs) {
    TensorSpec tensor{spec["name"], spec["dtype"], {}, optional_of(spec["minimum"]), optional_of(spec["maximum"]), optional_of(spec["pad"])};
    for (const json& size : spec["shape"]) {
      if (size.is_string()) tensor.shape.emplace_back(size.get<std::string>());
      else tensor.shape.emplace_back(size.get<int64_t>());
    }
    found.push_back(std::move(tensor));
  }
  return found;
}

// Digits, letters and points, the first a digit, and perhaps a build tag after a plus: a user is told to install it.
bool is_version(const std::string& text) {
  const auto plain = [](const std::string& part, size_t most) {
    const char* letters = "0123456789.ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    return !part.empty() && part.size() <= most && part.find_first_not_of(letters) == std::string::npos;
  };
  const size_t plus = text.find('+');
  const bool tagged = plus == std::string::npos || plain(text.substr(plus + 1), 40);
  return plain(text.substr(0, plus), 41) && text[0] >= '0' && text[0] <= '9' && tagged;
}

json parsed(const std::string& text) {
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) wrong("manifest.json is not valid JSON: it begins with a byte order mark");
  // To the library it is the end of the text.
  if (text.find('\0') != std::string::npos) wrong("manifest.json is not valid JSON: it has a NUL byte");
  // Deeper values could not be copied without running out of stack.
  const auto shallow = [](int depth, json::parse_event_t, const json&) {
    if (depth > max_depth) wrong("manifest.json is not valid JSON: nested too deeply");
    return true;
  };
  try {
    return json::parse(text, shallow);
  } catch (const json::exception& error) {
    wrong(std::string("manifest.json is not valid JSON: ") + error.what());
  }
}

}  // namespace

Manifest Manifest::from_json(const std::string& text) {
  const json raw = parsed(text);
  const bool has_version = raw.is_object() && raw.contains("format_version") && raw["format_version"].is_number_integer();
  if (!has_version) wrong("manifest.json has no format_version: this file was not written by cpuc");
  const json& version = raw["format_version"];
  if (version != format_version)
    wrong("the bundle has format version " + version.dump() + ", this cpuc reads version " + std::to_string(format_version) + ": " +
          (!in_range(version) || version.get<int64_t>() > format_version ? "update cpuc" : "compile the model again"));
  manifest_type()(raw, "manifest.json");
  const json& build = raw["build"];
  for (const char* name : {"torch", "ipex"}) {
    const auto release = build[name].get<std::string>();
    if (!is_version(release))
      wrong(std::string("manifest.json.build.") + name + ": " + in_quotes(release) + " is no version");
  }
  check_tuning(build["tuning"]);
  check_axes(raw["axes"]);
  Manifest manifest;
  for (const char* name : {"inputs", "outputs"}) check_tensors(raw[name], name, raw["axes"]);
  manifest.task = raw["task"], manifest.architecture = raw["architecture"], manifest.precision = build["precision"];
  manifest.torch = build["torch"], manifest.ipex = build["ipex"], manifest.isa = build["isa"];
  for (const auto& [name, axis] : raw["axes"].items())
    manifest.axes[name] = {axis["minimum"].get<int64_t>(), optional_of(axis["maximum"])};
  manifest.inputs = tensors_of(raw["inputs"]), manifest.outputs = tensors_of(raw["outputs"]);
  manifest.preprocessing = raw["preprocessing"];
  manifest.members = raw["members"].get<std::map<std::string, std::string>>();
  return manifest;
}

}  // namespace cpuc
