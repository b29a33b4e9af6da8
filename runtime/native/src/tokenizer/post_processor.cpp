// make_post_processor, and the Sequence of post-processors.
#include "tokenizer/makers.h"

namespace cpuc {

namespace {

class PostProcessorSequence : public PostProcessor {
 public:
  explicit PostProcessorSequence(const Fields& fields) : all_(make_all(fields, "processors", make_post_processor)) {
    // After these two the library no longer has one sequence or two, but a list of pieces.
    const std::vector<Fields> each = fields.objects("processors");
    for (size_t i = 0; i + 1 < each.size(); ++i)
      if (each[i].type() == "TemplateProcessing" || each[i].type() == "BertProcessing")
        fields.refuse(each[i].type() + " before another post-processor");
  }

  size_t added(bool pair) const override {
    size_t count = 0;
    for (const auto& each : all_) count += each->added(pair);
    return count;
  }

  std::vector<Windows> process(std::vector<Windows> sequences, bool add_special_tokens) const override {
    for (const auto& each : all_) sequences = each->process(std::move(sequences), add_special_tokens);
    return sequences;
  }

  static std::unique_ptr<const PostProcessor> make(const Fields& fields) {
    return std::make_unique<PostProcessorSequence>(fields);
  }

 private:
  std::vector<std::unique_ptr<const PostProcessor>> all_;
};

}  // namespace

std::unique_ptr<const PostProcessor> make_post_processor(const Fields& fields) {
  static constexpr Maker<PostProcessor> makers[] = {
      {"BertProcessing", bert_processing},         {"ByteLevel", byte_level_post_processor},
      {"RobertaProcessing", roberta_processing},   {"Sequence", PostProcessorSequence::make},
      {"TemplateProcessing", template_processing},
  };
  return make_from(makers, fields);
}

}  // namespace cpuc
