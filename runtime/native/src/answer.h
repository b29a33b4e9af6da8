// What cpuc-run asks of libcpuc, which it opens while it reads its input: torch takes a third of a second to register its operators.
#pragma once

#include <functional>
#include <future>
#include <optional>
#include <string>

#include "bundle.h"
#include "records.h"
#include "tasks/task.h"

namespace cpuc {

struct Request {
  const Bundle& bundle;
  Checks checks;             // the digests, if they are to be compared
  std::string data, source;   // named tensors, where there are no records
  std::optional<Records> records;
  Options options;
  std::function<void(size_t answered)> progress;
};

// The answer as JSON; "" for a request without data, which only loads the bundle. Throws Error.
std::string answer(Request request);

// How cpuc-run finds it: it has this name in the library.
using Answer = void (*)(Request& request, std::string& answer);
constexpr const char* answer_name = "cpuc_answer";

}  // namespace cpuc
