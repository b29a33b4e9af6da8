// What makes the components that have a file of their own; the tables of make_normalizer and its like list them.
#pragma once

#include <memory>

#include "tokenizer/components.h"

namespace cpuc {

std::unique_ptr<const Normalizer> bert_normalizer(const Fields& fields);
std::unique_ptr<const Normalizer> precompiled_normalizer(const Fields& fields);
std::unique_ptr<const Normalizer> replace_normalizer(const Fields& fields);

std::unique_ptr<const PreTokenizer> byte_level_pre_tokenizer(const Fields& fields);
std::unique_ptr<const PreTokenizer> metaspace_pre_tokenizer(const Fields& fields);
std::unique_ptr<const PreTokenizer> split_pre_tokenizer(const Fields& fields);

std::unique_ptr<const SubwordModel> word_piece(const Fields& fields);
std::unique_ptr<const SubwordModel> byte_pair_encoding(const Fields& fields);
std::unique_ptr<const SubwordModel> unigram(const Fields& fields);

std::unique_ptr<const PostProcessor> template_processing(const Fields& fields);
std::unique_ptr<const PostProcessor> bert_processing(const Fields& fields);
std::unique_ptr<const PostProcessor> byte_level_post_processor(const Fields& fields);
std::unique_ptr<const PostProcessor> roberta_processing(const Fields& fields);

std::unique_ptr<const Decoder> word_piece_decoder(const Fields& fields);
std::unique_ptr<const Decoder> byte_level_decoder(const Fields& fields);
std::unique_ptr<const Decoder> metaspace_decoder(const Fields& fields);

struct SpecialToken {
  std::string value;
  int64_t id;
};

// A field that is a list of a token and its id.
SpecialToken token_of(const Fields& fields, const char* name);

// Each character in lower case.
void lowercase(Text& text);

// Each byte of the text's UTF-8 as a character of ByteLevel's alphabet.
void to_byte_characters(Text& text);

}  // namespace cpuc
