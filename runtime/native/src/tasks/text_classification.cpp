// Text classification: the scores of runtime/tasks/text_classification.py.
#include "error.h"
#include "tasks/labels.h"
#include "tasks/task.h"

namespace cpuc {
namespace {

class TextClassification final : public Task {
 public:
  TextClassification(const Manifest& manifest, const TextEncoder& encoder, const Options& options)
      : Task(encoder), labels_(read_labels(manifest)), top_k_(options.number("top_k")), truncate_(options.flag("truncate")) {
    const auto activation = manifest.preprocessing.find("activation");
    if (activation != manifest.preprocessing.end() && activation->is_string()) activation_ = activation->get<std::string>();
    if (activation_ != "softmax" && activation_ != "sigmoid" && activation_ != "none")
      throw Error(Kind::bundle, "manifest.json.preprocessing: activation is missing or wrong");
  }

  Record parse(const Json& value, const std::string& where) const override { return parse_text(value, where, true); }

  std::vector<Encoding> encode(const Record& record) const override { return {encode_cut(record, record.text, record.pair, truncate_)}; }

  Json decode(const Record& record, const std::vector<Encoding>&, const std::vector<Outputs>& outputs) const override {
    const std::vector<float>& logits = outputs[0].at("logits").values;
    const std::vector<float> scores = activation_ == "softmax" ? softmax(logits) : activation_ == "sigmoid" ? sigmoid(logits) : logits;
    const auto json_of = [&](size_t i) { return Json{{"label", labels_.at(i)}, {"score", scores[i]}}; };
    if (!top_k_) return with_id(record, json_of(largest(scores, 1).at(0)));
    Json list = Json::array();
    for (const size_t i : largest(scores, static_cast<size_t>(*top_k_))) list.push_back(json_of(i));
    return with_id(record, {{"labels", std::move(list)}});
  }

 private:
  std::vector<std::string> labels_;
  std::string activation_;
  std::optional<int64_t> top_k_;
  bool truncate_;
};

}  // namespace

TaskType text_classification() {
  return {"text-classification", {top_k_option(), truncate_option()}, {"logits"}, make<TextClassification>};
}

}  // namespace cpuc
