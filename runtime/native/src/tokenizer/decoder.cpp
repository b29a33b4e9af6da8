// make_decoder.
#include "tokenizer/makers.h"

namespace cpuc {

std::unique_ptr<const Decoder> make_decoder(const Fields& fields) {
  static constexpr Maker<Decoder> makers[] = {
      {"ByteLevel", byte_level_decoder}, {"Metaspace", metaspace_decoder}, {"WordPiece", word_piece_decoder}};
  return make_from(makers, fields);
}

}  // namespace cpuc
