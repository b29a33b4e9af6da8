#include <ATen/ATen.h>

#include <algorithm>
#include <future>
#include <numeric>

#include "cpuc.h"
#include "heap.h"
#include "text.h"

namespace cpuc {
namespace {

// Positions of rows in batches whose longest length times rows stays within the budget, longest rows first: so the largest buffers are
// allocated once. Unless `mixed`, the rows of a batch are all of one length.
std::vector<std::vector<size_t>> batches(const std::vector<const Encoding*>& rows, size_t budget, bool mixed) {
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rows[a]->size() > rows[b]->size(); });
  std::vector<std::vector<size_t>> found;
  for (const size_t row : order) {
    const size_t longest = found.empty() ? 0 : rows[found.back()[0]]->size();
    const bool fits = !found.empty() && (found.back().size() + 1) * longest <= budget && (mixed || rows[row]->size() == longest);
    if (!fits) found.emplace_back();
    found.back().push_back(row);
  }
  return found;
}

std::vector<int64_t> values_of(const Encoding& row, const std::string& input) {
  if (input == "input_ids") return row.ids;
  return input == "token_type_ids" ? row.type_ids : std::vector<int64_t>(row.size(), 1);
}

size_t offset_of(const Encoding& row, size_t longest, bool right) { return right ? 0 : longest - row.size(); }

// The rows as tensors of shape [rows, longest], filled up on the given side.
Tensors padded(const Manifest& manifest, const std::vector<const Encoding*>& rows, bool right) {
  const size_t longest = rows[0]->size();
  Tensors tensors;
  for (const TensorSpec& spec : manifest.inputs) {
    const at::Tensor tensor = at::full({static_cast<int64_t>(rows.size()), static_cast<int64_t>(longest)}, spec.pad.value_or(0), at::kLong);
    auto* data = tensor.data_ptr<int64_t>();
    for (size_t i = 0; i < rows.size(); ++i) {
      const std::vector<int64_t> values = values_of(*rows[i], spec.name);
      std::copy(values.begin(), values.end(), data + i * longest + offset_of(*rows[i], longest, right));
    }
    tensors[spec.name] = tensor.to(dtype_of(spec.dtype));
  }
  return tensors;
}

void check_shape(const TensorSpec& spec, const at::Tensor& tensor, size_t rows, size_t longest) {
  bool fits = tensor.dim() == static_cast<int64_t>(spec.shape.size()) && tensor.dim() > 0;
  for (size_t axis = 0; fits && axis < spec.shape.size(); ++axis) {
    const int64_t size = tensor.size(static_cast<int64_t>(axis));
    const auto* name = std::get_if<std::string>(&spec.shape[axis]);
    const int64_t expected = name == nullptr ? std::get<int64_t>(spec.shape[axis]) : *name == "batch" ? static_cast<int64_t>(rows)
                             : *name == "sequence" ? static_cast<int64_t>(longest) : size;
    fits = size == expected && (axis > 0 || (name != nullptr && *name == "batch"));
  }
  if (!fits) throw Error(Kind::bundle, "output " + in_quotes(spec.name) + " has not the shape that manifest.json states: compile the model again");
}

// The outputs of row `index`, the axis "sequence" cut to its own length.
Outputs cut(const Manifest& manifest, const std::vector<std::string>& wanted, const Tensors& outputs, int64_t index, const Encoding& row, size_t rows,
            size_t longest, bool right) {
  Outputs own;
  for (const TensorSpec& spec : manifest.outputs) {
    if (std::find(wanted.begin(), wanted.end(), spec.name) == wanted.end()) continue;
    const at::Tensor& whole = outputs.at(spec.name);
    check_shape(spec, whole, rows, longest);
    at::Tensor tensor = whole[index];
    for (size_t axis = 1; axis < spec.shape.size(); ++axis) {
      const auto* name = std::get_if<std::string>(&spec.shape[axis]);
      if (name != nullptr && *name == "sequence")
        tensor = tensor.narrow(static_cast<int64_t>(axis) - 1, static_cast<int64_t>(offset_of(row, longest, right)), static_cast<int64_t>(row.size()));
    }
    tensor = tensor.to(at::kFloat).contiguous();
    const auto* data = tensor.const_data_ptr<float>();
    own[spec.name] = {tensor.sizes().vec(), {data, data + tensor.numel()}};
  }
  return own;
}

}  // namespace

TextModel TextModel::load(const std::string& path, const LoadOptions& options) {
  const Bundle bundle = Bundle::open(path, options.trust);
  return load(bundle, bundle.start_checking(options));
}

TextModel TextModel::load(const Bundle& bundle, Checks checks) {
  task_type(bundle.manifest);
  keep_freed_memory();  // the model is loaded by another thread, whose heap would not grow
  auto model = std::async(std::launch::async, [&] { return Model::load(bundle, std::move(checks)); });
  TextEncoder encoder(bundle.manifest, bundle.read("tokenizer.json"));
  make_task(bundle.manifest, encoder, {});
  return TextModel(model.get(), std::move(encoder));
}

TextModel::TextModel(Model model, TextEncoder encoder) : model_(std::move(model)), encoder_(std::move(encoder)) {
  const auto& inputs = manifest().inputs;
  // Without a mask the graph cannot tell padding from values.
  mixes_ = std::any_of(inputs.begin(), inputs.end(), [](const TensorSpec& spec) { return spec.name == "attention_mask"; });
}

std::vector<Json> TextModel::answers(const Records& records, const Options& options, const Progress& progress) const {
  const std::unique_ptr<const Task> task = make_task(manifest(), encoder_, options);
  std::vector<Record> parsed;
  for (size_t i = 0; i < records.values.size(); ++i) parsed.push_back(task->parse(records.values[i], records.names.at(i)));
  const size_t size = task_type(manifest()).chunk_records;
  std::vector<Json> answers;
  for (size_t begin = 0; begin < parsed.size(); begin += size) {
    const size_t end = std::min(begin + size, parsed.size());
    std::vector<std::vector<Encoding>> rows;
    for (size_t i = begin; i < end; ++i) rows.push_back(task->encode(parsed[i]));
    const std::vector<std::vector<Outputs>> outputs = run(rows, progress);
    for (size_t i = begin; i < end; ++i) answers.push_back(task->decode(parsed[i], rows[i - begin], outputs[i - begin]));
  }
  return answers;
}

std::vector<std::vector<Outputs>> TextModel::run(const std::vector<std::vector<Encoding>>& rows, const Progress& progress) const {
  const TaskType& type = task_type(manifest());
  std::vector<const Encoding*> flat;
  std::vector<std::pair<size_t, size_t>> places;  // of each row: its record, and which of that record's rows it is
  std::vector<std::vector<Outputs>> outputs(rows.size());
  std::vector<size_t> missing(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    outputs[i].resize(rows[i].size()), missing[i] = rows[i].size();
    for (size_t j = 0; j < rows[i].size(); ++j) flat.push_back(&rows[i][j]), places.emplace_back(i, j);
  }
  for (const std::vector<size_t>& batch : batches(flat, type.batch_tokens, mixes_)) {
    std::vector<const Encoding*> own;
    for (const size_t row : batch) own.push_back(flat[row]);
    const Tensors found = model_.run(padded(manifest(), own, encoder_.pads_right()));
    for (size_t i = 0; i < batch.size(); ++i) {
      const auto [record, row] = places[batch[i]];
      outputs[record][row] = cut(manifest(), type.outputs, found, static_cast<int64_t>(i), *own[i], own.size(), own[0]->size(), encoder_.pads_right());
      if (--missing[record] == 0 && progress) progress(1);
    }
  }
  return outputs;
}

}  // namespace cpuc
