// Token classification: tokens, words and groups of runtime/tasks/token_classification.py.
#include <algorithm>
#include <set>

#include "characters.h"
#include "error.h"
#include "tasks/labels.h"
#include "tasks/task.h"
#include "tokenizer/unicode.h"

namespace cpuc {
namespace {

// A token or a word. `continues` says that it goes on with the word before it.
struct Piece {
  std::string word;
  std::vector<float> scores;
  size_t start, end, index;
  bool continues;
};

// With the label that it was given.
struct Labelled {
  std::string label;
  float score;
  Piece piece;
};

template <typename Item, typename Joins>
std::vector<std::vector<Item>> grouped(const std::vector<Item>& items, Joins joins) {
  std::vector<std::vector<Item>> groups;
  for (const Item& item : items) {
    if (groups.empty() || !joins(groups.back().back(), item)) groups.emplace_back();
    groups.back().push_back(item);
  }
  return groups;
}

std::string tag(const std::string& label) { return label.rfind("B-", 0) == 0 || label.rfind("I-", 0) == 0 ? label.substr(2) : label; }

float greatest(const Piece& piece) { return *std::max_element(piece.scores.begin(), piece.scores.end()); }

std::vector<float> average(const std::vector<Piece>& pieces) {
  std::vector<float> total(pieces[0].scores.size());
  for (const Piece& piece : pieces) {
    for (size_t i = 0; i < total.size(); ++i) total[i] += piece.scores[i];
  }
  for (float& value : total) value /= static_cast<float>(pieces.size());
  return total;
}

class TokenClassification final : public Task {
 public:
  TokenClassification(const Manifest& manifest, const TextEncoder& encoder, const Options& options)
      : Task(encoder), labels_(read_labels(manifest)), strategy_(options.text("aggregation_strategy").value_or("none")), truncate_(options.flag("truncate")) {
    const auto unknown = manifest.preprocessing.find("unk_token_id");
    if (unknown != manifest.preprocessing.end() && unknown->is_number_integer()) unknown_ = unknown->get<int64_t>();
    for (const std::string& label : split_at_commas(options.text("ignore_labels").value_or("O"))) ignored_.insert(strip(label));
  }

  std::vector<Encoding> encode(const Record& record) const override { return {encode_cut(record, record.text, {}, truncate_)}; }

  Json decode(const Record& record, const std::vector<Encoding>& rows, const std::vector<Outputs>& outputs) const override {
    const std::vector<Piece> tokens = pieces(unicode::decode(record.text), rows[0], of_tokens(outputs[0], "logits", rows[0]));
    std::vector<Labelled> spans;
    if (strategy_ == "none" || strategy_ == "simple") {
      for (const Piece& token : tokens) spans.push_back(label(token.scores, token));
    } else {
      for (const auto& word : grouped(tokens, [](const Piece&, const Piece& next) { return next.continues; })) spans.push_back(label_word(word));
    }
    Json entities = Json::array();
    const auto add = [&](const std::string& name, Json entity) {
      if (ignored_.count(name) == 0) entities.push_back(std::move(entity));
    };
    if (strategy_ == "none") {
      for (const auto& [name, score, token] : spans)
        add(name, {{"entity", name}, {"score", score}, {"index", token.index}, {"word", token.word}, {"start", token.start}, {"end", token.end}});
    } else {
      const auto joins = [](const Labelled& before, const Labelled& next) {
        return next.label.rfind("B-", 0) != 0 && tag(next.label) == tag(before.label);
      };
      for (const auto& group : grouped(spans, joins)) {
        const std::string name = group[0].label.substr(group[0].label.find('-') + 1);  // all of it where there is no prefix
        add(name, merge(name, group));
      }
    }
    return with_id(record, {{"entities", std::move(entities)}});
  }

 private:
  std::vector<Piece> pieces(const std::u32string& text, const Encoding& row, const Output& logits) const {
    // A tokenizer that marks how words go on says which tokens make a word.
    const bool knows_words = !encoder_.tokenizer().continuing_subword_prefix().empty();
    std::vector<Piece> found;
    for (size_t i = 0; i < row.size(); ++i) {
      if (row.special_tokens_mask[i]) continue;
      const auto [start, end] = row.offsets[i];
      Piece piece{row.tokens[i], softmax(logits.at(i)), start, end, i, false};
      if (row.ids[i] == unknown_) {
        piece.word = slice(text, start, end);
      } else if (knows_words) {
        piece.continues = length(piece.word) != end - start;
      } else {
        piece.continues = start > 0 && slice(text, start - 1, start + 1).find(' ') == std::string::npos;
      }
      found.push_back(std::move(piece));
    }
    return found;
  }

  Labelled label(const std::vector<float>& scores, const Piece& piece) const {
    if (scores.size() != labels_.size()) throw Error(Kind::bundle, "manifest.json: the outputs are not the scores of the labels in 'preprocessing'");
    const auto best = static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
    return {labels_.at(best), scores[best], piece};
  }

  Labelled label_word(const std::vector<Piece>& word) const {
    std::vector<std::string> words;
    for (const Piece& piece : word) words.push_back(piece.word);
    const Piece whole{encoder_.tokenizer().decode_tokens(words), word[0].scores, word[0].start, word.back().end, word[0].index, false};
    if (strategy_ == "first") return label(word[0].scores, whole);
    if (strategy_ == "average") return label(average(word), whole);
    const auto surest = std::max_element(word.begin(), word.end(), [](const Piece& a, const Piece& b) { return greatest(a) < greatest(b); });
    return label(surest->scores, whole);
  }

  Json merge(const std::string& name, const std::vector<Labelled>& group) const {
    float total = 0;
    std::vector<std::string> words;
    for (const Labelled& each : group) total += each.score, words.push_back(each.piece.word);
    return {{"entity_group", name},
            {"score", total / static_cast<float>(group.size())},
            {"word", encoder_.tokenizer().decode_tokens(words)},
            {"start", group[0].piece.start},
            {"end", group.back().piece.end}};
  }

  std::vector<std::string> labels_;
  std::string strategy_;
  std::optional<int64_t> unknown_;
  std::set<std::string> ignored_;
  bool truncate_;
};

}  // namespace

TaskType token_classification() {
  const auto text = OptionSpec::Kind::text;
  return {"token-classification",
          {{"aggregation_strategy",
            text,
            "How tokens become entities: none (every token), simple (adjacent tokens of one label), or whole words, labelled by their first "
            "token, the average of its scores, or its most certain token.  [default: none]",
            0,
            {"none", "simple", "first", "average", "max"}},
           {"ignore_labels", text, "Labels to leave out, separated by commas.  [default: O]"},
           truncate_option()},
          {"logits"},
          make<TokenClassification>};
}

}  // namespace cpuc
