// Zero-shot classification: labels that the user names become hypotheses, as runtime/tasks/zero_shot_classification.py.
#include <algorithm>
#include <numeric>

#include "characters.h"
#include "error.h"
#include "tasks/labels.h"
#include "tasks/task.h"
#include "text.h"

namespace cpuc {
namespace {

std::vector<std::string> labels_of(const std::string& text) {
  std::vector<std::string> labels;
  for (const std::string& part : split_at_commas(text)) {
    if (!is_blank(part)) labels.push_back(strip(part));
  }
  return labels;
}

class ZeroShotClassification final : public Task {
 public:
  ZeroShotClassification(const Manifest& manifest, const TextEncoder& encoder, const Options& options)
      : Task(encoder),
        candidates_(labels_of(options.text("candidate_labels").value_or(""))),
        hypothesis_(options.text("hypothesis_template").value_or("This example is {}.")),
        independent_(options.flag("multi_label")),
        truncate_(options.flag("truncate")) {
    const std::vector<std::string> labels = read_labels(manifest);
    const auto entailment = std::find_if(labels.begin(), labels.end(), [](const std::string& label) { return lower(label).rfind("entail", 0) == 0; });
    if (entailment == labels.end() || labels.size() < 2)
      throw Error(Kind::bundle, "manifest.json.preprocessing: labels has none that begins with 'entail'");
    entailment_ = static_cast<size_t>(entailment - labels.begin());
    contradiction_ = entailment_ == 0 ? labels.size() - 1 : 0;
    place_ = hypothesis_.find("{}");
    if (place_ == std::string::npos || hypothesis_.find("{}", place_ + 2) != std::string::npos)
      throw Error(Kind::input, "hypothesis_template is " + in_quotes(hypothesis_) + ", must have one {} for the label");
  }

  Record parse(const Json& value, const std::string& where) const override {
    if (value.is_string()) return parse(Json{{"text", value}}, where);
    Record record = begin_record(value, where, "a string or {\"text\": \u2026, \"candidate_labels\": [\u2026]}");
    const Json labels = value.contains("candidate_labels") ? value["candidate_labels"] : Json();
    if (!labels.is_null()) record.choices = labels.is_string() ? labels_of(labels.get<std::string>()) : named(labels, record.where);
    if (record.choices && record.choices->empty()) named(Json::array(), record.where);
    record.text = string_field(value, "text", record.where);
    return record;
  }

  std::vector<Encoding> encode(const Record& record) const override {
    if (labels(record).empty()) throw Error(Kind::input, record.where + ": names no candidate_labels; give them there or with --candidate-labels");
    const TextEncoder::Limits limits{truncate_ ? std::optional(Strategy::only_first) : std::nullopt};
    std::vector<Encoding> rows;
    for (const std::string& label : labels(record)) {
      std::string hypothesis = hypothesis_;
      rows.push_back(encoder_.encode(record.text, hypothesis.replace(place_, 2, label), record.where, limits));
    }
    return rows;
  }

  Json decode(const Record& record, const std::vector<Encoding>&, const std::vector<Outputs>& outputs) const override {
    std::vector<float> scores;
    const bool each = independent_ || outputs.size() == 1;
    for (const Outputs& output : outputs) {
      const std::vector<float>& logits = output.at("logits").values;
      scores.push_back(each ? softmax({logits.at(contradiction_), logits.at(entailment_)})[1] : logits.at(entailment_));
    }
    if (!each) scores = softmax(std::move(scores));
    std::vector<size_t> order(scores.size());
    std::iota(order.rbegin(), order.rend(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    Json ranked = {{"labels", Json::array()}, {"scores", Json::array()}};
    for (const size_t i : order) ranked["labels"].push_back(labels(record)[i]), ranked["scores"].push_back(scores[i]);
    return with_id(record, ranked);
  }

 private:
  const std::vector<std::string>& labels(const Record& record) const { return record.choices ? *record.choices : candidates_; }

  static std::vector<std::string> named(const Json& labels, const std::string& where) {
    const auto fits = [](const Json& label) { return label.is_string() && !is_blank(label.get_ref<const std::string&>()); };
    if (!labels.is_array() || labels.empty() || !std::all_of(labels.begin(), labels.end(), fits))
      throw Error(Kind::input, where + ": field 'candidate_labels' must be a list of strings that are not empty");
    return labels.get<std::vector<std::string>>();
  }

  std::vector<std::string> candidates_;
  std::string hypothesis_;
  bool independent_, truncate_;
  size_t entailment_ = 0, contradiction_ = 0, place_ = 0;
};

}  // namespace

TaskType zero_shot_classification() {
  const auto text = OptionSpec::Kind::text, flag = OptionSpec::Kind::flag;
  return {"zero-shot-classification",
          {{"candidate_labels", text, "Labels for records that name none, separated by commas."},
           {"hypothesis_template", text, "The sentence that a label stands in, at {}.  [default: This example is {}.]"},
           {"multi_label", flag, "Judge each label by itself, instead of sharing out a probability of 1."},
           truncate_option()},
          {"logits"},
          make<ZeroShotClassification>};
}

}  // namespace cpuc
