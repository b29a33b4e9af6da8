// Fill-mask: the predictions of runtime/tasks/fill_mask.py.
#include <algorithm>
#include <array>
#include <numeric>

#include "characters.h"
#include "error.h"
#include "tasks/labels.h"
#include "tasks/task.h"
#include "text.h"

namespace cpuc {
namespace {

// Spaces that joining tokens leaves before punctuation and contractions, in this order.
const std::array<std::string, 10> spaced = {" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"};

std::string tidy(std::string text) {
  for (const std::string& part : spaced) {
    const std::string plain = strip(part);
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += plain.size()) text.replace(at, part.size(), plain);
  }
  return text;
}

class FillMask final : public Task {
 public:
  FillMask(const Manifest& manifest, const TextEncoder& encoder, const Options& options)
      : Task(encoder), count_(static_cast<size_t>(options.number("top_k").value_or(5))) {
    const auto& facts = manifest.preprocessing;
    if (!facts.contains("mask_token_id") || !facts["mask_token_id"].is_number_integer())
      throw Error(Kind::bundle, "manifest.json.preprocessing: mask_token_id is missing or wrong");
    mask_ = facts["mask_token_id"].get<int64_t>();
    tidies_ = facts.contains("clean_up_tokenization_spaces") && facts["clean_up_tokenization_spaces"] == true;
    if (const auto targets = options.text("targets")) targets_ = ids_of(*targets);
  }

  std::vector<Encoding> encode(const Record& record) const override {
    Encoding row = encoder_.encode(record.text, {}, record.where, {{}, {}, false});
    if (std::find(row.ids.begin(), row.ids.end(), mask_) == row.ids.end())
      throw Error(Kind::input, record.where + ": field 'text' has no mask token: write " +
                                   encoder_.tokenizer().id_to_token(mask_).value_or("None") + " where a word is missing");
    return {std::move(row)};
  }

  Json decode(const Record& record, const std::vector<Encoding>& rows, const std::vector<Outputs>& outputs) const override {
    const std::vector<int64_t>& ids = rows[0].ids;
    const bool only = std::count(ids.begin(), ids.end(), mask_) == 1;
    Json masks = Json::array();
    for (size_t place = 0; place < ids.size(); ++place) {
      if (ids[place] != mask_) continue;
      const std::vector<float> scores = softmax(of_tokens(outputs[0], "logits", rows[0]).at(place));
      Json predictions = Json::array();
      for (const size_t token : best(scores)) predictions.push_back(predict(ids, place, token, scores.at(token), only));
      masks.push_back(std::move(predictions));
    }
    return with_id(record, {{"predictions", only ? Json(masks[0]) : std::move(masks)}});
  }

 private:
  // Ids of the tokens asked for, each of which must be a single one of the vocabulary.
  std::vector<size_t> ids_of(const std::string& targets) const {
    std::vector<size_t> ids;
    for (const std::string& target : split_at_commas(targets)) {
      if (is_blank(target)) continue;
      auto token = encoder_.tokenizer().token_to_id(target);
      if (!token) {
        const std::vector<int64_t> pieces = encoder_.tokenizer().encode(target, {}, nullptr, false).front().ids;
        if (pieces.size() != 1) throw Error(Kind::input, "targets: " + in_quotes(target) + " is not one token of the model's vocabulary");
        token = pieces[0];
      }
      const auto id = static_cast<size_t>(*token);
      if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
    }
    if (ids.empty()) throw Error(Kind::input, "targets names no token");
    return ids;
  }

  std::vector<size_t> best(const std::vector<float>& scores) const {
    if (!targets_) return largest(scores, count_);
    std::vector<float> own;
    for (const size_t id : *targets_) own.push_back(scores.at(id));
    std::vector<size_t> tokens;
    for (const size_t i : largest(own, count_)) tokens.push_back((*targets_)[i]);
    return tokens;
  }

  Json predict(std::vector<int64_t> ids, size_t place, size_t token, float score, bool only) const {
    const auto id = static_cast<int64_t>(token);
    ids[place] = id;
    // With several masks the others would vanish from the text together with the special tokens.
    return {{"score", score}, {"token", id}, {"token_str", text({id}, false)}, {"sequence", text(ids, only)}};
  }

  std::string text(const std::vector<int64_t>& ids, bool skip_special_tokens) const {
    std::string decoded = encoder_.tokenizer().decode(ids, skip_special_tokens);
    return tidies_ ? tidy(std::move(decoded)) : decoded;
  }

  size_t count_;
  int64_t mask_ = 0;
  bool tidies_ = false;
  std::optional<std::vector<size_t>> targets_;
};

}  // namespace

TaskType fill_mask() {
  return {"fill-mask",
          {top_k_option(), {"targets", OptionSpec::Kind::text, "Choose among these tokens only, separated by commas (and no spaces)."}},
          {"logits"},
          make<FillMask>,
          // Every token gives a score for each word of the vocabulary: batches are small.
          256,
          16};
}

}  // namespace cpuc
