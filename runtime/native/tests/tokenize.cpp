// The native tokenizer, for tests: `cpuc-tokenize tokenizer.json` answers JSON lines on standard input, each with a line.
//
//   {"text", "pair", "length", "stride", "strategy", "side", "special"}   a list of encodings; all but "text" may be left out
//   {"hex"}                                                        the same for bytes that may not be UTF-8
//   {"decode": [ids], "skip"}                                      {"text"}
//   {"detokenize": [tokens]}                                       {"text"}
//   {"ids": [tokens]}, {"tokens": [ids]}                           {"found": [ids or tokens or null]}
//   {"characters": [from, to]}                                     what each code point is, see `characters`
//
// A line that cannot be answered gets {"error", "kind"}; if the file cannot be used, that is all there is.
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "error.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace {

using nlohmann::json;

template <typename T>
json or_null(const std::optional<T>& value) {
  return value ? json(*value) : json();
}

json words_of(const cpuc::Encoding& encoding, size_t sequence) {
  json words = json::array();
  size_t count = 0;
  for (const auto& word : encoding.word_ids) count = std::max(count, word ? *word + 1 : 0);
  for (size_t word = 0; word <= count; ++word) words.push_back(or_null(encoding.word_to_chars(word, sequence)));
  return words;
}

json to_json(const cpuc::Encoding& encoding) {
  json result = {{"ids", encoding.ids},
                 {"type_ids", encoding.type_ids},
                 {"tokens", encoding.tokens},
                 {"offsets", encoding.offsets},
                 {"special_tokens_mask", encoding.special_tokens_mask}};
  result["word_ids"] = json::array();
  for (const auto& each : encoding.word_ids) result["word_ids"].push_back(or_null(each));
  result["sequence_ids"] = json::array();
  for (const auto& each : encoding.sequence_ids) result["sequence_ids"].push_back(or_null(each));
  result["words"] = {words_of(encoding, 0), words_of(encoding, 1)};
  return result;
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

json encode(const cpuc::Tokenizer& tokenizer, const json& request) {
  const std::string text = request.contains("hex") ? from_hex(request["hex"]) : request["text"].get<std::string>();
  std::optional<std::string> pair;
  if (request.contains("pair") && !request["pair"].is_null()) pair = request["pair"].get<std::string>();
  std::optional<cpuc::Truncation> truncation;
  if (request.contains("length")) {
    const std::string strategy = request.value("strategy", "longest_first");
    truncation = {request["length"].get<size_t>(), request.value("stride", size_t{0}),
                  strategy == "only_first"    ? cpuc::Strategy::only_first
                  : strategy == "only_second" ? cpuc::Strategy::only_second
                                              : cpuc::Strategy::longest_first,
                  request.value("side", "right") == "left"};
  }
  json result = json::array();
  for (const auto& each : tokenizer.encode(text, pair, truncation ? &*truncation : nullptr, request.value("special", true)))
    result.push_back(to_json(each));
  return result;
}

json lookup(const cpuc::Tokenizer& tokenizer, const json& request) {
  json found = json::array();
  if (request.contains("ids"))
    for (const std::string token : request["ids"]) found.push_back(or_null(tokenizer.token_to_id(token)));
  else
    for (const int64_t id : request["tokens"]) found.push_back(or_null(tokenizer.id_to_token(id)));
  return {{"found", found}};
}

template <typename Characters>
json list_of(const Characters& characters, size_t size) {
  return std::vector<uint32_t>(characters.begin(), characters.begin() + static_cast<std::ptrdiff_t>(size));
}

// For each code point: a string with a letter for each thing that it is, its combining class, its decomposition, its lower
// case and its compatible decomposition.
json characters(const json& request) {
  using namespace cpuc::unicode;
  json result = json::array();
  for (char32_t c = request["characters"][0]; c < request["characters"][1]; ++c) {
    std::string kinds;
    if (is_space(c)) kinds += 's';
    if (is_removed(c)) kinds += 'r';
    if (is_ideograph(c)) kinds += 'i';
    if (is_accent(c)) kinds += 'a';
    if (is_punctuation(c)) kinds += 'p';
    if (is_word(c)) kinds += 'w';
    if (is_letter(c)) kinds += 'L';
    if (is_number(c)) kinds += 'N';
    if (is_mark(c)) kinds += 'M';
    const Expansion canonical = decompose(c), lowered = lower(c);
    const std::u32string compatible = decompose_compatible(c);
    result.push_back({kinds, combining_class(c), list_of(canonical.characters, canonical.size),
                      list_of(lowered.characters, lowered.size), list_of(compatible, compatible.size())});
  }
  return result;
}

json answer(const cpuc::Tokenizer& tokenizer, const json& request) {
  if (request.contains("decode")) return {{"text", tokenizer.decode(request["decode"], request.value("skip", true))}};
  if (request.contains("detokenize")) return {{"text", tokenizer.decode_tokens(request["detokenize"])}};
  if (request.contains("ids") || request.contains("tokens")) return lookup(tokenizer, request);
  if (request.contains("characters")) return characters(request);
  return encode(tokenizer, request);
}

void report(const cpuc::Error& error) {
  const char* kind = error.kind == cpuc::Kind::input ? "input" : "bundle";
  std::cout << json{{"error", error.what()}, {"kind", kind}}.dump() << std::endl;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: cpuc-tokenize tokenizer.json\n";
    return 2;
  }
  std::ifstream file(arguments[1], std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(file), {}};
  try {
    const auto tokenizer = cpuc::Tokenizer::from_json(content);
    for (std::string line; std::getline(std::cin, line);) {
      try {
        std::cout << answer(tokenizer, json::parse(line)).dump() << std::endl;
      } catch (const cpuc::Error& error) {
        report(error);
      }
    }
  } catch (const cpuc::Error& error) {
    report(error);
  }
}
