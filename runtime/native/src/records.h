// Reading what users give to cpuc-run and writing answers back in the same form, as runtime/records.py does it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace cpuc {

// The shape of the input, which the output repeats. A record that stands on one line is a line.
enum class Form { record, list, lines };

struct Records {
  Form form;
  std::vector<Json> values;
  std::vector<std::string> names;  // what errors call each by: "record 3", "line 7"
};

// One JSON object, a list, SQuAD's own JSON, or JSON Lines (.jsonl, or told by the second line). `source` is the file's name. Throws
// Error (input): not UTF-8 or not JSON.
Records parse_records(const std::string& data, const std::string& source);

// The one JSON value of an input. Throws Error (input) naming line and column.
Json parse_input(const std::string& data, const std::string& source);

// The JSON of the answers in the form of the input, ending in a newline.
std::string format_answers(const std::vector<Json>& answers, Form form);

// A record of any text task. What its fields are is the task's: a question and its context are `text` and `pair`.
struct Record {
  std::string text;
  std::optional<std::string> pair = {};
  std::optional<std::vector<std::string>> choices = {};
  Json id = {};  // whatever the user gave, or null
  std::string where = "the record";
};

// Throws Error (input) unless the value is an object; `example` is the form that is expected. Returns the record's id and its name in
// errors, and no fields.
Record begin_record(const Json& value, const std::string& where, const std::string& example);

// A string of the record. Throws Error (input) if it is missing, no string, or empty.
std::string string_field(const Json& value, const std::string& name, const std::string& where);

// A string, or an object with `text`, an `id` if there is one and, with `pairs`, a `text_pair`.
Record parse_text(const Json& value, const std::string& where, bool pairs = false);

// `answer` with the record's id in front, if there is one.
Json with_id(const Record& record, const Json& answer);

}  // namespace cpuc
