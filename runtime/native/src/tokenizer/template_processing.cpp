// TemplateProcessing, and BertProcessing as a template.
#include <map>
#include <nlohmann/json.hpp>

#include "tokenizer/makers.h"

namespace cpuc {

namespace {

// A special token, which may be several tokens, or a sequence.
struct Piece {
  std::optional<size_t> sequence;
  int64_t type_id;
  std::vector<SpecialToken> tokens;
};

using Template = std::vector<Piece>;

class TemplateProcessing : public PostProcessor {
 public:
  TemplateProcessing(Template single, Template pair) : single_(std::move(single)), pair_(std::move(pair)) {}

  size_t added(bool pair) const override {
    size_t count = 0;
    for (const Piece& piece : pair ? pair_ : single_) count += piece.tokens.size();
    return count;
  }

  std::vector<Windows> process(std::vector<Windows> sequences, bool add_special_tokens) const override {
    Windows result;
    for (const Piece& piece : sequences.size() == 2 ? pair_ : single_) {
      if (piece.sequence) {
        Windows& sequence = sequences[*piece.sequence];
        // The library gives the template's type to the first window only.
        sequence.main.type_ids.assign(sequence.main.size(), piece.type_id);
        set_sequence(sequence.main, *piece.sequence);
        append(result, sequence);
      } else if (add_special_tokens) {
        Windows special;
        for (const SpecialToken& each : piece.tokens)
          special.main.push(each.id, each.value, piece.type_id, {0, 0}, {}, true);
        append(result, special);
      }
    }
    return {result};
  }

 private:
  Template single_, pair_;
};

using SpecialTokens = std::map<std::string, std::vector<SpecialToken>>;

SpecialTokens special_tokens_of(const Fields& fields) {
  SpecialTokens result;
  const Fields all = fields.object("special_tokens");
  for (const auto& entry : fields.at("special_tokens").items()) {
    const Fields token = all.object(entry.key().c_str());
    const nlohmann::json& ids = token.array("ids");
    const nlohmann::json& tokens = token.array("tokens");
    if (ids.size() != tokens.size()) token.fail("must have as many tokens as ids");
    auto& list = result[entry.key()];
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!tokens[i].is_string()) token.fail("field 'tokens' must have strings");
      list.push_back({tokens[i].get<std::string>(), to_id(ids[i], token.where() + ".ids")});
    }
  }
  return result;
}

Template template_of(const Fields& fields, const char* name, size_t sequences, const SpecialTokens& special_tokens) {
  Template pieces;
  for (const nlohmann::json& value : fields.array(name)) {
    const Fields piece(value, fields.where() + "." + name);
    if (piece.has("Sequence")) {
      const Fields sequence = piece.object("Sequence");
      const std::string id = sequence.string("id");
      if (id != "A" && (id != "B" || sequences == 1)) sequence.fail("there is no sequence '" + id + "'");
      pieces.push_back({id == "A" ? 0U : 1U, sequence.unsigned32("type_id"), {}});
      continue;
    }
    const Fields special = piece.object("SpecialToken");
    const auto found = special_tokens.find(special.string("id"));
    if (found == special_tokens.end()) special.fail("'" + special.string("id") + "' is not among the special tokens");
    pieces.push_back({std::nullopt, special.unsigned32("type_id"), found->second});
  }
  return pieces;
}

Piece piece_of(const SpecialToken& token, int64_t type_id) { return {std::nullopt, type_id, {token}}; }

}  // namespace

SpecialToken token_of(const Fields& fields, const char* name) {
  const nlohmann::json& value = fields.array(name);
  if (value.size() != 2 || !value[0].is_string()) fields.fail(std::string("field '") + name + "' must be a token and its id");
  return {value[0].get<std::string>(), to_id(value[1], fields.where() + "." + name)};
}

std::unique_ptr<const PostProcessor> template_processing(const Fields& fields) {
  const SpecialTokens special_tokens = special_tokens_of(fields);
  return std::make_unique<TemplateProcessing>(template_of(fields, "single", 1, special_tokens),
                                              template_of(fields, "pair", 2, special_tokens));
}

std::unique_ptr<const PostProcessor> bert_processing(const Fields& fields) {
  const SpecialToken first = token_of(fields, "cls"), last = token_of(fields, "sep");
  const Template single = {piece_of(first, 0), {0, 0, {}}, piece_of(last, 0)};
  Template pair = single;
  pair.push_back({1, 1, {}});
  pair.push_back(piece_of(last, 1));
  return std::make_unique<TemplateProcessing>(single, pair);
}

}  // namespace cpuc
