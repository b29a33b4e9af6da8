// Feature extraction: the encoder's last hidden state of every token, as runtime/tasks/feature_extraction.py.
#include "tasks/task.h"

namespace cpuc {
namespace {

class FeatureExtraction final : public Task {
 public:
  FeatureExtraction(const Manifest&, const TextEncoder& encoder, const Options& options) : Task(encoder), truncate_(options.flag("truncate")) {}

  std::vector<Encoding> encode(const Record& record) const override { return {encode_cut(record, record.text, {}, truncate_)}; }

  Json decode(const Record& record, const std::vector<Encoding>& rows, const std::vector<Outputs>& outputs) const override {
    Json features = Json::array();
    for (size_t i = 0; i < rows[0].size(); ++i) features.push_back(of_tokens(outputs[0], "last_hidden_state", rows[0]).at(i));
    return with_id(record, {{"features", std::move(features)}});
  }

 private:
  bool truncate_;
};

}  // namespace

TaskType feature_extraction() { return {"feature-extraction", {truncate_option()}, {"last_hidden_state"}, make<FeatureExtraction>}; }

}  // namespace cpuc
