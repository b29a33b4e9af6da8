#include "tasks/task.h"

#include <algorithm>

#include "error.h"
#include "text.h"

namespace cpuc {
namespace {

template <typename Items, typename Name>
std::string joined(const Items& items, Name name) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : ", ") + name(item);
  return text;
}

void check_option(const OptionSpec& spec, const Options::Value& value) {
  const auto wrong = [&](const std::string& shown, const std::string& must) { throw Error(Kind::input, spec.name + " is " + shown + ", must be " + must); };
  const auto* number = std::get_if<int64_t>(&value);
  const auto* text = std::get_if<std::string>(&value);
  const std::string shown = text ? in_quotes(*text) : number ? std::to_string(*number) : std::get<bool>(value) ? "True" : "False";
  if (spec.kind == OptionSpec::Kind::number && (!number || *number < spec.minimum))
    wrong(shown, "a whole number of at least " + std::to_string(spec.minimum));
  if (spec.kind == OptionSpec::Kind::flag && !std::holds_alternative<bool>(value)) wrong(shown, "true or false");
  if (spec.kind == OptionSpec::Kind::text && !text) wrong(shown, "a string");
  if (!spec.choices.empty() && std::find(spec.choices.begin(), spec.choices.end(), *text) == spec.choices.end())
    wrong(shown, "one of " + joined(spec.choices, [](const std::string& choice) { return choice; }));
}

void check_options(const TaskType& type, const Options& options) {
  for (const auto& [name, value] : options.given) {
    const auto spec = std::find_if(type.options.begin(), type.options.end(), [&key = name](const OptionSpec& each) { return each.name == key; });
    if (spec == type.options.end()) {
      const std::string names = joined(type.options, [](const OptionSpec& each) { return each.name; });
      throw Error(Kind::input, type.name + " has no option " + in_quotes(name) + "; it has " + (names.empty() ? "none" : names));
    }
    check_option(*spec, value);
  }
}

}  // namespace

std::vector<float> Output::at(size_t position) const {
  const auto width = static_cast<std::ptrdiff_t>(values.size() / static_cast<size_t>(std::max<int64_t>(shape.at(0), 1)));
  const auto begin = values.begin() + width * static_cast<std::ptrdiff_t>(position);
  return {begin, begin + width};
}

const Output& of_tokens(const Outputs& outputs, const std::string& name, const Encoding& row) {
  const Output& output = outputs.at(name);
  if (output.shape.empty() || output.shape[0] != static_cast<int64_t>(row.size()))
    throw Error(Kind::bundle, "manifest.json: output " + in_quotes(name) + " does not hold something for each token");
  return output;
}

const std::vector<TaskType>& task_types() {
  static const std::vector<TaskType> types = {
      question_answering(),  text_classification(), token_classification(),     fill_mask(),
      sentence_embeddings(), feature_extraction(),  zero_shot_classification(), multiple_choice(),
  };
  return types;
}

const TaskType& task_type(const Manifest& manifest) {
  const auto type = std::find_if(task_types().begin(), task_types().end(), [&](const TaskType& each) { return each.name == manifest.task; });
  if (type == task_types().end())
    throw Error(Kind::bundle, "the bundle's task " + in_quotes(manifest.task) + " takes no text in this program: give named tensors, and use --raw");
  for (const std::string& name : type->outputs) {
    const auto& outputs = manifest.outputs;
    if (std::none_of(outputs.begin(), outputs.end(), [&](const TensorSpec& spec) { return spec.name == name; })) {
      std::string words = type->name;
      std::replace(words.begin(), words.end(), '-', ' ');
      throw Error(Kind::bundle, "manifest.json: the outputs are not those of " + words);
    }
  }
  return *type;
}

std::unique_ptr<const Task> make_task(const Manifest& manifest, const TextEncoder& encoder, const Options& options) {
  const TaskType& type = task_type(manifest);
  check_options(type, options);
  return type.make(manifest, encoder, options);
}

OptionSpec top_k_option() { return {"top_k", OptionSpec::Kind::number, "Give this many results to each record, as a list.", 1}; }

OptionSpec truncate_option() { return {"truncate", OptionSpec::Kind::flag, "Cut texts that are longer than the model allows."}; }

}  // namespace cpuc
