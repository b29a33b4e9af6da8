// The parts of a tokenizer, and what makes them from tokenizer.json. They do not change once made.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/encoding.h"
#include "tokenizer/fields.h"
#include "tokenizer/text.h"

namespace cpuc {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual void normalize(Text& text) const = 0;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // The words of a text, in order; none is empty.
  virtual std::vector<Text> split(const Text& text) const = 0;
};

class SubwordModel {
 public:
  virtual ~SubwordModel() = default;
  virtual std::vector<Token> tokenize(const Text& word) const = 0;
  virtual std::optional<int64_t> token_to_id(std::string_view token) const = 0;
  virtual std::optional<std::string> id_to_token(int64_t id) const = 0;
  virtual size_t size() const = 0;
  virtual std::string continuing_subword_prefix() const = 0;
};

class PostProcessor {
 public:
  virtual ~PostProcessor() = default;
  // How many special tokens it adds.
  virtual size_t added(bool pair) const = 0;
  // Of one or two sequences, what is then put together.
  virtual std::vector<Windows> process(std::vector<Windows> sequences, bool add_special_tokens) const = 0;
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Pieces of text, which are then joined.
  virtual std::vector<std::string> decode(std::vector<std::string> tokens) const = 0;
};

// A type of component, as tokenizer.json names it, and what makes one.
template <typename Component>
struct Maker {
  const char* type;
  std::unique_ptr<const Component> (*make)(const Fields& fields);
};

// Throws Error (bundle) that names the component if it is not in the table.
template <typename Component, size_t count>
std::unique_ptr<const Component> make_from(const Maker<Component> (&table)[count], const Fields& fields) {
  const std::string type = fields.type();
  for (const Maker<Component>& maker : table)
    if (type == maker.type) return maker.make(fields);
  fields.refuse();
}

// The components of a Sequence, which is a list in a field of its own.
template <typename Component>
std::vector<std::unique_ptr<const Component>> make_all(const Fields& fields, const char* name,
                                                       std::unique_ptr<const Component> (*make)(const Fields&)) {
  std::vector<std::unique_ptr<const Component>> all;
  for (const Fields& each : fields.objects(name)) all.push_back(make(each));
  return all;
}

// Each throws Error (bundle) that names the component if it is none of those supported.
std::unique_ptr<const Normalizer> make_normalizer(const Fields& fields);
std::unique_ptr<const PreTokenizer> make_pre_tokenizer(const Fields& fields);
std::unique_ptr<const SubwordModel> make_model(const Fields& fields);
std::unique_ptr<const PostProcessor> make_post_processor(const Fields& fields);
std::unique_ptr<const Decoder> make_decoder(const Fields& fields);

}  // namespace cpuc
