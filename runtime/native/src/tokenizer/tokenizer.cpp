#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "error.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/components.h"

namespace cpuc {

struct Tokenizer::Parts {
  std::unique_ptr<const Normalizer> normalizer;
  std::unique_ptr<const PreTokenizer> pre_tokenizer;
  std::unique_ptr<const SubwordModel> model;
  std::unique_ptr<const PostProcessor> post_processor;
  std::unique_ptr<const Decoder> decoder;
  std::unique_ptr<const AddedTokens> added_tokens;

  size_t added(bool pair) const { return post_processor ? post_processor->added(pair) : 0; }
};

namespace {

// Null, or absent: there is no such component.
template <typename Component>
std::unique_ptr<const Component> component(const Fields& fields, const char* name,
                                           std::unique_ptr<const Component> (*make)(const Fields&)) {
  return fields.has(name) ? make(fields.object(name)) : nullptr;
}

nlohmann::json parse(std::string_view json) {
  // To the library it is the end of the text.
  if (json.find('\0') != std::string_view::npos) throw Error(Kind::bundle, "tokenizer.json cannot be read: it has a NUL byte");
  try {
    return nlohmann::json::parse(json);
  } catch (const nlohmann::json::parse_error& error) {
    // Its own message repeats bytes of the file, which may be anything.
    throw Error(Kind::bundle, "tokenizer.json cannot be read: it is no JSON at byte " + std::to_string(error.byte));
  } catch (const nlohmann::json::exception&) {
    throw Error(Kind::bundle, "tokenizer.json cannot be read: it has a number that is too large");
  }
}

}  // namespace

Tokenizer Tokenizer::from_json(std::string_view json) {
  const nlohmann::json value = parse(json);
  const Fields fields(value, "tokenizer.json");
  if (fields.has("version") && fields.string("version") != "1.0")
    fields.fail("version '" + fields.string("version") + "' is not supported: only 1.0 is");
  auto parts = std::make_shared<Parts>();
  parts->normalizer = component(fields, "normalizer", make_normalizer);
  parts->pre_tokenizer = component(fields, "pre_tokenizer", make_pre_tokenizer);
  parts->model = make_model(fields.object("model"));
  parts->post_processor = component(fields, "post_processor", make_post_processor);
  parts->decoder = component(fields, "decoder", make_decoder);
  // Not copied, which recurses into whatever the list holds.
  const nlohmann::json none = nlohmann::json::array(), &added = fields.has("added_tokens") ? fields.array("added_tokens") : none;
  parts->added_tokens = std::make_unique<AddedTokens>(added, *parts->model, parts->normalizer.get());
  return Tokenizer(std::move(parts));
}

Encoding Tokenizer::encode_sequence(std::string_view text, int64_t type_id) const {
  Encoding encoding;
  size_t word_id = 0;
  const auto add = [&](const Text& word, const std::vector<Token>& tokens) {
    for (const Token& token : tokens)
      encoding.push(token.id, token.value, type_id, {word[token.begin].origin, word[token.end - 1].origin + 1}, word_id, false);
    ++word_id;
  };
  for (const Stretch& stretch : parts_->added_tokens->extract(to_text(text), parts_->normalizer.get())) {
    if (stretch.token)
      add(stretch.text, {*stretch.token});
    else if (!parts_->pre_tokenizer)
      add(stretch.text, parts_->model->tokenize(stretch.text));
    else
      for (const Text& word : parts_->pre_tokenizer->split(stretch.text)) add(word, parts_->model->tokenize(word));
  }
  return encoding;
}

void Tokenizer::check(const Truncation& truncation, bool pair, bool add_special_tokens) const {
  // The library counts the special tokens of a single text here, whatever it encodes later.
  const size_t single = parts_->added(false);
  const size_t most = std::max(single, pair && add_special_tokens ? parts_->added(true) : 0);
  if (truncation.length < most)
    throw Error(Kind::bundle, "a length of " + std::to_string(truncation.length) + " is less than the " +
                                  std::to_string(most) + " special tokens");
  if (truncation.length - single < truncation.stride)
    throw Error(Kind::bundle, "tokenizer stride set to " + std::to_string(truncation.stride) +
                                  ", which is greater than or equal to its effective max length of " +
                                  std::to_string(truncation.length - single) + " (= " + std::to_string(truncation.length) +
                                  " original max length - " + std::to_string(single) + " added special tokens), ");
}

Windows Tokenizer::process(std::vector<Windows> sequences, bool add_special_tokens) const {
  if (parts_->post_processor) {
    for (size_t i = 0; i < sequences.size(); ++i) {
      set_sequence(sequences[i].main, i);
      for (Encoding& each : sequences[i].overflowing) set_sequence(each, i);
    }
    Windows result;
    for (const Windows& each : parts_->post_processor->process(std::move(sequences), add_special_tokens)) append(result, each);
    return result;
  }
  if (sequences.size() == 1) return std::move(sequences[0]);
  // As in the library, windows that were cut do not know their sequence.
  for (size_t i = 0; i < sequences.size(); ++i) set_sequence(sequences[i].main, i);
  append(sequences[0], sequences[1]);
  return std::move(sequences[0]);
}

std::vector<Encoding> Tokenizer::encode(std::string_view text, std::optional<std::string_view> pair,
                                        const Truncation* truncation, bool add_special_tokens) const {
  std::vector<Windows> sequences;
  sequences.push_back({encode_sequence(text, 0), {}});
  if (pair) sequences.push_back({encode_sequence(*pair, 1), {}});
  if (truncation) {
    check(*truncation, pair.has_value(), add_special_tokens);
    Truncation limits = *truncation;
    if (add_special_tokens) limits.length -= parts_->added(pair.has_value());
    truncate(sequences, limits);
    for (Windows& each : sequences)
      if (!limits.windows) each.overflowing.clear();
  }
  Windows windows = process(std::move(sequences), add_special_tokens);
  std::vector<Encoding> result;
  result.reserve(1 + windows.overflowing.size());
  result.push_back(std::move(windows.main));
  for (Encoding& each : windows.overflowing) result.push_back(std::move(each));
  for (Encoding& each : result) list_sequences(each);
  return result;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids, bool skip_special_tokens) const {
  std::vector<std::string> tokens;
  for (const int64_t id : ids) {
    auto token = id_to_token(id);
    if (token && !(skip_special_tokens && parts_->added_tokens->is_special(*token))) tokens.push_back(std::move(*token));
  }
  return decode_tokens(tokens);
}

std::string Tokenizer::decode_tokens(const std::vector<std::string>& tokens) const {
  std::string text;
  if (parts_->decoder)
    for (const std::string& piece : parts_->decoder->decode(tokens)) text += piece;
  else
    for (const std::string& token : tokens) text += (&token == &tokens.front() ? "" : " ") + token;
  return text;
}

std::optional<int64_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto id = parts_->added_tokens->token_to_id(token);
  return id ? id : parts_->model->token_to_id(token);
}

std::optional<std::string> Tokenizer::id_to_token(int64_t id) const {
  auto token = parts_->added_tokens->id_to_token(id);
  return token ? token : parts_->model->id_to_token(id);
}

std::string Tokenizer::continuing_subword_prefix() const { return parts_->model->continuing_subword_prefix(); }

}  // namespace cpuc
