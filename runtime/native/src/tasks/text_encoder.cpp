#include "tasks/text_encoder.h"

#include <algorithm>
#include <array>

#include "error.h"

namespace cpuc {
namespace {

const std::array<std::string, 3> inputs = {"input_ids", "attention_mask", "token_type_ids"};

void check_inputs(const Manifest& manifest) {
  const auto of_text = [](const TensorSpec& spec) {
    const auto axis = [&](size_t i) { return i < spec.shape.size() ? std::get_if<std::string>(&spec.shape[i]) : nullptr; };
    const bool known = std::find(inputs.begin(), inputs.end(), spec.name) != inputs.end();
    return known && spec.shape.size() == 2 && axis(0) && *axis(0) == "batch" && axis(1) && *axis(1) == "sequence";
  };
  const auto& specs = manifest.inputs;
  const bool ids = std::any_of(specs.begin(), specs.end(), [](const TensorSpec& spec) { return spec.name == "input_ids"; });
  if (!ids || !std::all_of(specs.begin(), specs.end(), of_text))
    throw Error(Kind::bundle, "manifest.json: the inputs are not those of a text model");
}

// Whether a field says "right". `missing` is what it is where the manifest does not have it.
bool is_right(const Manifest& manifest, const char* name, const std::string& missing, const std::string& error) {
  const auto found = manifest.preprocessing.find(name);
  const bool absent = found == manifest.preprocessing.end();
  const std::string side = absent ? missing : found->is_string() ? found->get<std::string>() : "";
  if (side != "left" && side != "right") throw Error(Kind::bundle, "manifest.json.preprocessing: " + error);
  return side == "right";
}

}  // namespace

TextEncoder::TextEncoder(const Manifest& manifest, std::string_view tokenizer_json) : tokenizer_(Tokenizer::from_json(tokenizer_json)) {
  check_inputs(manifest);
  pads_right_ = is_right(manifest, "padding_side", "", "padding_side is missing or wrong");
  cuts_left_ = !is_right(manifest, "truncation_side", "right", "truncation_side is wrong");
  const auto& most = manifest.axes.at("sequence").maximum;
  if (most) maximum_ = static_cast<size_t>(*most);
}

std::vector<Encoding> TextEncoder::tokenize(const std::string& text, const std::optional<std::string>& pair, const std::string& where,
                                            const Truncation* truncation) const {
  try {
    return tokenizer_.encode(text, pair, truncation);
  } catch (const Error& error) {
    if (error.kind != Kind::bundle) throw;
    throw Error(Kind::bundle, where + ": the bundle's tokenizer cannot encode it: " + error.what());
  }
}

Encoding TextEncoder::encode(const std::string& text, const std::optional<std::string>& pair, const std::string& where,
                             const Limits& limits) const {
  const auto most = limits.length && maximum_ ? std::min(limits.length, maximum_) : limits.length ? limits.length : maximum_;
  Encoding encoding = std::move(tokenize(text, pair, where).front());
  if (most && encoding.size() > *most) {
    if (!limits.cut)
      throw Error(Kind::input, where + ": is " + std::to_string(encoding.size()) + " tokens long, the model takes at most " +
                                   std::to_string(*most) + ": shorten it" + (limits.hint ? ", or give --truncate (truncate=True)" : ""));
    encoding = cut(text, pair, where, *limits.cut, *most);
  }
  if (encoding.size() == 0) throw Error(Kind::input, where + ": has no text that the model's tokenizer knows");
  return encoding;
}

Encoding TextEncoder::cut(const std::string& text, const std::optional<std::string>& pair, const std::string& where, Strategy strategy,
                          size_t most) const {
  if (strategy == Strategy::only_first && pair) {
    const size_t rest = tokenize("", pair, where).front().size();
    if (rest >= most)
      throw Error(Kind::input, where + ": the second text alone takes " + std::to_string(rest) + " tokens, the model takes at most " +
                                   std::to_string(most));
  }
  const Truncation truncation{most, 0, strategy, cuts_left_, false};
  return std::move(tokenize(text, pair, where, &truncation).front());
}

}  // namespace cpuc
