#include "records.h"

#include <algorithm>
#include <array>

#include "characters.h"
#include "error.h"
#include "text.h"
#include "tokenizer/unicode.h"

namespace cpuc {
namespace {

// What records of any task begin with: an object with one of these is not SQuAD's, whatever else it has.
const std::array<std::string, 5> fields = {"question", "context", "text", "image", "audio"};
// What a question of SQuAD may have besides its text.
const std::array<std::string, 3> squad_fields = {"id", "answers", "is_impossible"};

[[noreturn]] void wrong(const std::string& message) { throw Error(Kind::input, message); }

std::string without_mark(const std::string& data, const std::string& source) {
  const size_t mark = data.rfind("\xEF\xBB\xBF", 0) == 0 ? 3 : 0;
  const std::string text = data.substr(mark);
  if (const auto byte = unicode::find_invalid(text)) wrong(source + ": not UTF-8 at byte " + std::to_string(*byte) + ": save the file as UTF-8");
  return text;
}

// The error that `error` of parsing `text` is; `line` is that of the text's first character, or 0 for the text of a whole file.
[[noreturn]] void refuse(const JsonError& error, std::string_view text, const std::string& source, size_t line) {
  const std::string at = line == 0 ? "" : " at line " + std::to_string(line);
  if (error.kind == JsonError::Kind::depth) wrong(source + ": the JSON" + at + " is " + error.what());
  if (error.kind == JsonError::Kind::digits) wrong(source + ": " + error.what() + at);
  const std::string_view before = text.substr(0, error.byte);
  size_t row = line == 0 ? 1 : line, column = 1;
  for (const char32_t character : unicode::decode(before.substr(0, unicode::find_invalid(before).value_or(before.size())))) {
    row += character == '\n' ? 1 : 0;
    column = character == '\n' ? 1 : column + 1;
  }
  wrong(source + ": invalid JSON at line " + std::to_string(row) + ", column " + std::to_string(column) + ": " + error.what());
}

Records parse_lines(std::string_view text, const std::string& source) {
  Records records{Form::lines, {}, {}};
  for (size_t number = 1, begin = 0; begin <= text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (is_blank(line)) continue;
    try {
      records.values.push_back(parse_json(line));
    } catch (const JsonError& error) {
      refuse(error, line, source, number);
    }
    records.names.push_back("line " + std::to_string(number));
  }
  return records;
}

bool is_json(std::string_view text) {
  try {
    parse_json(text);
    return true;
  } catch (const JsonError&) {
    return false;
  }
}

// Whether there is a value on the first line already, and more after it.
bool looks_like_lines(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n"), end = begin == std::string_view::npos ? begin : text.find('\n', begin);
  return end != std::string_view::npos && is_json(text.substr(begin, end - begin));
}

bool on_one_line(std::string_view text) {
  const size_t newline = text.find('\n', text.find_first_not_of(" \t\r\n"));
  return newline == std::string_view::npos || text.find_first_not_of(" \t\r\n", newline) == std::string_view::npos;
}

bool ends_with(const std::string& text, const std::string& ending) {
  return text.size() >= ending.size() && text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

const Json& squad_field(const Json& value, const char* name, const std::string& where) {
  if (!value.is_object()) wrong(where + ": not in the form of SQuAD's JSON");
  if (!value.contains(name)) wrong(where + ": field " + in_quotes(name) + " is missing (read as SQuAD's JSON)");
  return value[name];
}

const Json& squad_list(const Json& value, const char* name, const std::string& where) {
  const Json& list = squad_field(value, name, where);
  if (!list.is_array()) wrong(where + ": not in the form of SQuAD's JSON");
  return list;
}

// Questions of SQuAD 1.1 or 2.0 (Rajpurkar et al., 2016 and 2018) as records with their ids.
std::vector<Json> flatten_squad(const Json& value, const std::string& source) {
  std::vector<Json> records;
  std::string where = source + ": data";
  const Json& articles = squad_list(value, "data", where);
  for (size_t i = 0; i < articles.size(); ++i) {
    const Json& paragraphs = squad_list(articles[i], "paragraphs", where);
    for (size_t j = 0; j < paragraphs.size(); ++j) {
      where = source + ": data[" + std::to_string(i) + "].paragraphs[" + std::to_string(j) + "]";
      for (const Json& question : squad_list(paragraphs[j], "qas", where)) {
        Json record = {{"question", squad_field(question, "question", where)}, {"context", squad_field(paragraphs[j], "context", where)}};
        for (const std::string& name : squad_fields) {
          if (question.contains(name)) record[name] = question[name];
        }
        records.push_back(std::move(record));
      }
    }
  }
  return records;
}

Records listed(std::vector<Json> values) {
  Records records{Form::list, std::move(values), {}};
  for (size_t i = 1; i <= records.values.size(); ++i) records.names.push_back("record " + std::to_string(i));
  return records;
}

}  // namespace

Records parse_records(const std::string& data, const std::string& source) {
  const std::string text = without_mark(data, source);
  if (ends_with(source, ".jsonl") || ends_with(source, ".ndjson")) return parse_lines(text, source);
  if (is_blank(text)) wrong(source + ": is empty; expected JSON");
  Json value;
  try {
    value = parse_json(text);
  } catch (const JsonError& error) {
    if (looks_like_lines(text)) return parse_lines(text, source);
    refuse(error, text, source, 0);
  }
  const auto has = [&](const std::string& field) { return value.contains(field); };
  if (value.is_object() && has("data") && std::none_of(fields.begin(), fields.end(), has)) return listed(flatten_squad(value, source));
  if (value.is_array()) return listed(std::move(value.get_ref<Json::array_t&>()));
  return {on_one_line(text) ? Form::lines : Form::record, {std::move(value)}, {"the record"}};
}

Json parse_input(const std::string& data, const std::string& source) {
  const std::string text = without_mark(data, source);
  try {
    return parse_json(text);
  } catch (const JsonError& error) {
    refuse(error, text, source, 0);
  }
}

std::string format_answers(const std::vector<Json>& answers, Form form) {
  constexpr size_t indent = 2;
  if (form == Form::record) return write_json(answers.at(0), indent) + "\n";
  if (form == Form::list) return write_json(Json(answers), indent) + "\n";
  std::string text;
  for (const Json& answer : answers) text += write_json(answer) + "\n";
  return text;
}

Record begin_record(const Json& value, const std::string& where, const std::string& example) {
  if (!value.is_object()) wrong(where + ": expected " + example + ", found " + python_type(value.type()));
  Record record;
  record.where = where;
  if (value.contains("id")) {
    record.id = value["id"];
    record.where += " (id " + python_repr(record.id) + ")";
  }
  return record;
}

std::string string_field(const Json& value, const std::string& name, const std::string& where) {
  const std::string field = where + ": field " + in_quotes(name);
  if (!value.contains(name)) wrong(field + " is missing");
  if (!value[name].is_string()) wrong(field + " must be a string, found " + python_type(value[name].type()));
  auto text = value[name].get<std::string>();
  if (is_blank(text)) wrong(field + " is empty");
  return text;
}

Record parse_text(const Json& value, const std::string& where, bool pairs) {
  if (value.is_string()) return parse_text(Json{{"text", value}}, where, pairs);
  Record record = begin_record(value, where, std::string("a string or {\"text\": \u2026") + (pairs ? ", \"text_pair\": \u2026}" : "}"));
  if (pairs && value.contains("text_pair") && !value["text_pair"].is_null()) record.pair = string_field(value, "text_pair", record.where);
  record.text = string_field(value, "text", record.where);
  return record;
}

Json with_id(const Record& record, const Json& answer) {
  if (record.id.is_null()) return answer;
  Json whole = {{"id", record.id}};
  whole.update(answer);
  return whole;
}

}  // namespace cpuc
