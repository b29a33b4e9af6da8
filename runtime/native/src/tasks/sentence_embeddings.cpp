// Sentence embeddings, as runtime/tasks/sentence_embeddings.py. Pooling and normalisation are part of the graph.
#include <algorithm>

#include "characters.h"
#include "error.h"
#include "tasks/task.h"
#include "text.h"

namespace cpuc {
namespace {

class SentenceEmbeddings final : public Task {
 public:
  SentenceEmbeddings(const Manifest& manifest, const TextEncoder& encoder, const Options& options) : Task(encoder) {
    const auto& facts = manifest.preprocessing;
    const auto field = [&](const char* name) { return facts.contains(name) ? facts[name] : nlohmann::json(); };
    const auto length = field("max_seq_length"), prompts = field("prompts"), standard = field("default_prompt_name");
    if (!(length.is_null() || (length.is_number_integer() && length > 0)) || !prompts.is_object())
      throw Error(Kind::bundle, "manifest.json.preprocessing: max_seq_length or prompts is missing or wrong");
    if (!std::all_of(prompts.begin(), prompts.end(), [](const auto& prompt) { return prompt.is_string(); }) ||
        !(standard.is_null() || standard.is_string()))
      throw Error(Kind::bundle, "manifest.json.preprocessing: a prompt or default_prompt_name is no string");
    if (!length.is_null()) length_ = length.get<size_t>();
    lowers_ = field("do_lower_case") == true;
    const auto asked = options.text("prompt_name");
    if (asked && !prompts.contains(*asked)) {
      std::string known;
      for (const auto& [name, prompt] : prompts.items()) known += (known.empty() ? "" : ", ") + name;
      throw Error(Kind::input, "prompt_name is " + in_quotes(*asked) + "; the model's prompts: " + (known.empty() ? "none" : known));
    }
    const std::string name = asked && !asked->empty() ? *asked : standard.is_null() ? "" : standard.get<std::string>();
    if (prompts.contains(name)) prompt_ = prompts[name].get<std::string>();
  }

  std::vector<Encoding> encode(const Record& record) const override {
    const std::string text = prompt_ + record.text;
    return {encoder_.encode(lowers_ ? lower(text) : text, {}, record.where, {Strategy::longest_first, length_})};
  }

  Json decode(const Record& record, const std::vector<Encoding>&, const std::vector<Outputs>& outputs) const override {
    return with_id(record, {{"embedding", outputs[0].at("embedding").values}});
  }

 private:
  std::optional<size_t> length_;
  bool lowers_ = false;
  std::string prompt_;
};

}  // namespace

TaskType sentence_embeddings() {
  return {"sentence-embeddings",
          {{"prompt_name", OptionSpec::Kind::text, "Which of the model's prompts to put before each text.  [default: the model's own]"}},
          {"embedding"},
          make<SentenceEmbeddings>};
}

}  // namespace cpuc
