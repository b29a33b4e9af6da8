// The manifest: what a bundle says of itself, read and checked as runtime/manifest.py does it.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace cpuc {

constexpr int64_t largest_size = int64_t{1} << 31;

// Bounds of a free axis, both inclusive.
struct Axis {
  int64_t minimum;
  std::optional<int64_t> maximum;
};

// An input or output. `shape` holds sizes and the names of free axes; the bounds are those of an integer input's values.
struct TensorSpec {
  std::string name, dtype;
  std::vector<std::variant<int64_t, std::string>> shape;
  std::optional<int64_t> minimum, maximum, pad;
};

struct Manifest {
  std::string task, architecture, precision, torch, ipex, isa;
  std::map<std::string, Axis> axes;
  std::vector<TensorSpec> inputs, outputs;
  nlohmann::json preprocessing;
  std::map<std::string, std::string> members;  // SHA-256 in hexadecimal, by name

  // Throws Error naming the field that is missing, unknown, or of a wrong type.
  static Manifest from_json(const std::string& text);
};

}  // namespace cpuc
