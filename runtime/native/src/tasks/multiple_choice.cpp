// Multiple choice: each choice is a row with the text, as runtime/tasks/multiple_choice.py.
#include <algorithm>

#include "error.h"
#include "tasks/labels.h"
#include "tasks/task.h"

namespace cpuc {
namespace {

class MultipleChoice final : public Task {
 public:
  MultipleChoice(const Manifest&, const TextEncoder& encoder, const Options& options) : Task(encoder), truncate_(options.flag("truncate")) {}

  Record parse(const Json& value, const std::string& where) const override {
    Record record = begin_record(value, where, "{\"text\": \u2026, \"choices\": [\u2026]}");
    record.text = string_field(value, "text", record.where);
    const auto fits = [](const Json& choice) { return choice.is_string() && !choice.get_ref<const std::string&>().empty(); };
    const bool listed = value.contains("choices") && value["choices"].is_array() && value["choices"].size() >= 2;
    if (!listed || !std::all_of(value["choices"].begin(), value["choices"].end(), fits))
      throw Error(Kind::input, record.where + ": field 'choices' must be a list of at least two strings that are not empty");
    record.choices = value["choices"].get<std::vector<std::string>>();
    return record;
  }

  std::vector<Encoding> encode(const Record& record) const override {
    std::vector<Encoding> rows;
    for (size_t i = 0; i < record.choices->size(); ++i) {
      Record choice = record;
      choice.where += ": choice " + std::to_string(i);
      rows.push_back(encode_cut(choice, record.text, (*record.choices)[i], truncate_));
    }
    return rows;
  }

  Json decode(const Record& record, const std::vector<Encoding>&, const std::vector<Outputs>& outputs) const override {
    std::vector<float> scores;
    for (const Outputs& output : outputs) scores.push_back(output.at("logits").values.at(0));
    scores = softmax(std::move(scores));
    const size_t best = largest(scores, 1).at(0);
    return with_id(record, {{"choice", best}, {"text", (*record.choices)[best]}, {"scores", scores}});
  }

 private:
  bool truncate_;
};

}  // namespace

TaskType multiple_choice() { return {"multiple-choice", {truncate_option()}, {"logits"}, make<MultipleChoice>}; }

}  // namespace cpuc
