// The text tasks: each file turns records into rows of tokens and the model's outputs into answers, as runtime/tasks does it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "records.h"
#include "tasks/text_encoder.h"

namespace cpuc {

// An option that a user can give: `kind` says which alternative of its value.
struct OptionSpec {
  enum class Kind { flag, number, text };
  std::string name;  // with underscores
  Kind kind;
  std::string help;
  int64_t minimum = 0;
  std::vector<std::string> choices = {};
};

// What was given, by name.
class Options {
 public:
  using Value = std::variant<bool, int64_t, std::string>;
  std::map<std::string, Value> given;

  bool flag(const std::string& name) const { return value<bool>(name).value_or(false); }
  std::optional<int64_t> number(const std::string& name) const { return value<int64_t>(name); }
  std::optional<std::string> text(const std::string& name) const { return value<std::string>(name); }

 private:
  template <typename Type>
  std::optional<Type> value(const std::string& name) const {
    const auto found = given.find(name);
    return found == given.end() ? std::nullopt : std::optional(std::get<Type>(found->second));
  }
};

// An output of the model for one row, padding cut off.
struct Output {
  std::vector<int64_t> shape;
  std::vector<float> values;

  // Values of one position of an output of shape [tokens, values].
  std::vector<float> at(size_t position) const;
};
using Outputs = std::map<std::string, Output>;

// The output that has something for each token of the row. Throws Error (bundle) if it has not.
const Output& of_tokens(const Outputs& outputs, const std::string& name, const Encoding& row);

// A task with its options. Methods may be called from several threads; the encoder must live as long.
class Task {
 public:
  explicit Task(const TextEncoder& encoder) : encoder_(encoder) {}
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  // All throw Error (input) naming the record and the field that is wrong.
  virtual Record parse(const Json& value, const std::string& where) const { return parse_text(value, where); }
  virtual std::vector<Encoding> encode(const Record& record) const = 0;
  // The answer, from the outputs of the record's rows.
  virtual Json decode(const Record& record, const std::vector<Encoding>& rows, const std::vector<Outputs>& outputs) const = 0;

 protected:
  // One row, cut where it is too long if the user asked for that.
  Encoding encode_cut(const Record& record, const std::string& text, const std::optional<std::string>& pair, bool truncate) const {
    return encoder_.encode(text, pair, record.where, {truncate ? std::optional(Strategy::longest_first) : std::nullopt});
  }

  const TextEncoder& encoder_;
};

struct TaskType {
  std::string name;
  std::vector<OptionSpec> options;
  std::vector<std::string> outputs;  // those of the model that decoding reads
  // Throws Error: (bundle) the manifest lacks what the task needs, (input) an option that is out of range.
  std::unique_ptr<const Task> (*make)(const Manifest& manifest, const TextEncoder& encoder, const Options& options);
  size_t batch_tokens = 1024;  // in a batch, padding included
  size_t chunk_records = 1024;  // encoded at a time
};

template <typename Kind>
std::unique_ptr<const Task> make(const Manifest& manifest, const TextEncoder& encoder, const Options& options) {
  return std::make_unique<const Kind>(manifest, encoder, options);
}

const std::vector<TaskType>& task_types();

// The task of a manifest. Throws Error (bundle) if this program cannot answer it from text.
const TaskType& task_type(const Manifest& manifest);

// The task with options that were checked against its table. Throws Error (input) for one that is unknown or out of range.
std::unique_ptr<const Task> make_task(const Manifest& manifest, const TextEncoder& encoder, const Options& options);

// The rows of tables, one in each task's file.
TaskType question_answering();
TaskType text_classification();
TaskType token_classification();
TaskType fill_mask();
TaskType sentence_embeddings();
TaskType feature_extraction();
TaskType zero_shot_classification();
TaskType multiple_choice();

// Options that several tasks have.
OptionSpec top_k_option();
OptionSpec truncate_option();

}  // namespace cpuc
