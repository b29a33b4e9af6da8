// Extractive question answering: windows and decoding of runtime/tasks/question_answering.py.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "characters.h"
#include "error.h"
#include "tasks/labels.h"
#include "tasks/task.h"
#include "tokenizer/unicode.h"

namespace cpuc {
namespace {

constexpr float masked = -10000;
constexpr int64_t most_answers = 1 << 30;
constexpr size_t default_length = 384, default_stride = 128, default_answer = 30;

struct Span {
  size_t first, last;
  float score;
};

struct Answer {
  std::string text;
  double score;
  size_t start, end;
};

// Softmax over the allowed positions.
std::vector<float> probabilities(std::vector<float> logits, const std::vector<bool>& allowed) {
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = allowed[i] ? logits[i] : masked;
  return softmax(std::move(logits));
}

const std::vector<float>& logits_of(const Outputs& outputs, const std::string& name, const Encoding& row) {
  const Output& output = of_tokens(outputs, name, row);
  if (output.values.size() != row.size()) throw Error(Kind::bundle, "manifest.json: the outputs are not those of question answering");
  return output.values;
}

// The `count` likeliest spans of at most `longest` tokens, likeliest first.
std::vector<Span> best_spans(const std::vector<float>& start, const std::vector<float>& end, const std::vector<bool>& allowed, size_t longest,
                             size_t count) {
  std::vector<Span> spans;
  std::vector<float> scores;
  for (size_t first = 0; first < start.size(); ++first) {
    for (size_t last = first; allowed[first] && last < std::min(first + longest, start.size()); ++last) {
      const float score = start[first] * end[last];
      if (allowed[last] && score >= 0) spans.push_back({first, last, score}), scores.push_back(score);
    }
  }
  std::vector<Span> best;
  for (const size_t i : largest(scores, count)) best.push_back(spans[i]);
  return best;
}

class QuestionAnswering final : public Task {
 public:
  QuestionAnswering(const Manifest& manifest, const TextEncoder& encoder, const Options& options)
      : Task(encoder), side_(encoder.pads_right() ? 1 : 0), top_k_(options.number("top_k")), none_(options.flag("allow_no_answer")) {
    const auto cls = manifest.preprocessing.find("cls_token_id");
    if (cls != manifest.preprocessing.end() && !cls->is_null()) {
      if (!cls->is_number_integer()) throw Error(Kind::bundle, "manifest.json.preprocessing: cls_token_id is wrong");
      cls_ = cls->get<int64_t>();
    }
    const size_t most = encoder.maximum().value_or(default_length);
    const auto length = options.number("max_seq_length");
    if (length && encoder.maximum() && static_cast<size_t>(*length) > most)
      throw Error(Kind::input, "max_seq_length is " + std::to_string(*length) + ", but the model takes at most " + std::to_string(most) + " tokens");
    length_ = length ? static_cast<size_t>(*length) : std::min(default_length, most);
    stride_ = static_cast<size_t>(options.number("doc_stride").value_or(static_cast<int64_t>(std::min(default_stride, length_ / 2))));
    longest_ = static_cast<size_t>(options.number("max_answer_length").value_or(default_answer));
  }

  // The question is the record's text, the context its pair.
  Record parse(const Json& value, const std::string& where) const override {
    Record record = begin_record(value, where, "{\"question\": \u2026, \"context\": \u2026}");
    record.text = string_field(value, "question", record.where);
    record.pair = string_field(value, "context", record.where);
    return record;
  }

  std::vector<Encoding> encode(const Record& record) const override {
    const auto& [first, second] = side_ == 1 ? std::tie(record.text, *record.pair) : std::tie(*record.pair, record.text);
    std::vector<Encoding> whole = encoder_.tokenize(first, second, record.where);
    const auto& sequences = whole.front().sequence_ids;
    const auto context = static_cast<size_t>(std::count(sequences.begin(), sequences.end(), std::optional(side_)));
    if (context == 0) throw Error(Kind::input, record.where + ": field 'context' has no text that the model's tokenizer knows");
    if (whole.front().size() <= length_) return whole;
    const size_t others = whole.front().size() - context, room = length_ > others ? length_ - others : 0;
    if (room <= stride_)
      throw Error(Kind::input, record.where + ": the question takes " + std::to_string(others) + " of " + std::to_string(length_) +
                                   " tokens, which leaves " + std::to_string(room) + " for the context, no more than the stride of " +
                                   std::to_string(stride_) + ": shorten the question, or give a larger --max-seq-length or a smaller --doc-stride");
    const Truncation truncation{length_, stride_, side_ == 1 ? Strategy::only_second : Strategy::only_first, false};
    return encoder_.tokenize(first, second, record.where, &truncation);
  }

  Json decode(const Record& record, const std::vector<Encoding>& rows, const std::vector<Outputs>& outputs) const override {
    const std::u32string context = unicode::decode(*record.pair);
    std::vector<Answer> answers;
    std::unordered_map<std::string, size_t> known;  // places in `answers` by lower-case text
    float no_answer = 1;
    for (size_t i = 0; i < rows.size(); ++i) {
      for (const Span& span : spans(rows[i], outputs[i], no_answer)) {
        const auto [begin, end] = characters(rows[i], span);
        std::string text = slice(context, begin, end);
        const auto [place, added] = known.emplace(lower(text), answers.size());
        if (added) answers.push_back({std::move(text), span.score, begin, end});
        else answers[place->second].score += span.score;
      }
    }
    if (answers.empty())
      throw Error(Kind::bundle, record.where + ": the model's scores are no numbers (NaN): compare it with its original: cpuc verify BUNDLE --against MODEL");
    if (none_) answers.push_back({"", no_answer, 0, 0});
    std::stable_sort(answers.begin(), answers.end(), [](const Answer& a, const Answer& b) { return a.score > b.score; });
    if (!top_k_) return with_id(record, json_of(answers.at(0)));
    Json list = Json::array();
    for (size_t i = 0; i < std::min(static_cast<size_t>(*top_k_), answers.size()); ++i) list.push_back(json_of(answers[i]));
    return with_id(record, {{"answers", std::move(list)}});
  }

 private:
  static Json json_of(const Answer& answer) {
    return {{"answer", answer.text}, {"score", answer.score}, {"start", answer.start}, {"end", answer.end}};
  }

  // The best spans of a window, and the lesser of `no_answer` and its probability that there is none.
  std::vector<Span> spans(const Encoding& row, const Outputs& outputs, float& no_answer) const {
    std::vector<bool> allowed(row.size());
    // The context, and CLS, whose probability is that of no answer.
    for (size_t i = 0; i < row.size(); ++i) allowed[i] = row.sequence_ids[i] == side_ || (cls_ && row.ids[i] == *cls_);
    const std::vector<float> start = probabilities(logits_of(outputs, "start_logits", row), allowed);
    const std::vector<float> end = probabilities(logits_of(outputs, "end_logits", row), allowed);
    no_answer = std::min(no_answer, start[0] * end[0]);
    allowed[0] = allowed[0] && row.sequence_ids[0] == side_;
    // Spans that align to the same words become one answer, so more are taken than asked for.
    return best_spans(start, end, allowed, longest_, static_cast<size_t>(std::min(top_k_.value_or(1), most_answers)) * 2 + 10);
  }

  // Widened to whole words where the tokenizer knows words.
  std::pair<size_t, size_t> characters(const Encoding& row, const Span& span) const {
    if (row.word_ids[span.first] && row.word_ids[span.last]) {
      const auto head = row.word_to_chars(*row.word_ids[span.first], side_), tail = row.word_to_chars(*row.word_ids[span.last], side_);
      if (head && tail) return {head->first, tail->second};
    }
    return {row.offsets[span.first].first, row.offsets[span.last].second};
  }

  size_t side_;  // of a pair that the context is on: tokenizers that pad on the left take the question last
  std::optional<int64_t> top_k_, cls_;
  bool none_;
  size_t length_, stride_, longest_;
};

}  // namespace

TaskType question_answering() {
  const auto number = OptionSpec::Kind::number;
  return {"question-answering",
          {top_k_option(),
           {"max_seq_length", number, "Tokens in a window.  [default: 384, or what the model allows]", 1},
           {"doc_stride", number, "Tokens that windows of a long context share.  [default: 128]"},
           {"max_answer_length", number, "Tokens in an answer.  [default: 30]", 1},
           {"allow_no_answer", OptionSpec::Kind::flag, "Let the empty answer compete with the others."}},
          {"start_logits", "end_logits"},
          make<QuestionAnswering>};
}

}  // namespace cpuc
