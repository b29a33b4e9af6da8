// make_model.
#include "tokenizer/makers.h"

namespace cpuc {

std::unique_ptr<const SubwordModel> make_model(const Fields& fields) {
  static constexpr Maker<SubwordModel> makers[] = {
      {"BPE", byte_pair_encoding}, {"Unigram", unigram}, {"WordPiece", word_piece}};
  if (fields.has("type")) return make_from(makers, fields);
  // The first files of this format do not say which model it is; the library takes the first one whose fields are there.
  if (fields.has("merges")) return byte_pair_encoding(fields);
  if (fields.has("max_input_chars_per_word")) return word_piece(fields);
  if (fields.has("unk_id")) return unigram(fields);
  fields.refuse();
}

}  // namespace cpuc
