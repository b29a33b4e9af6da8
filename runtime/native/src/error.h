// The errors that cpuc raises on purpose; the message names what is wrong and what to do about it.
#pragma once

#include <stdexcept>
#include <string>

namespace cpuc {

enum class Kind { input, bundle };

class Error : public std::runtime_error {
 public:
  Error(Kind what_failed, const std::string& message) : std::runtime_error(message), kind(what_failed) {}
  Kind kind;
};

}  // namespace cpuc
