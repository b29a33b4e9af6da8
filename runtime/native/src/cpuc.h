// libcpuc: runs the artifacts that `cpuc compile` writes, without Python.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "error.h"
#include "records.h"
#include "tasks/task.h"
#include "tensors.h"

namespace cpuc {

// A loaded artifact. `run` may be called from several threads.
class Model {
 public:
  // Until it returns, the file must stay as it is (whoever replaces it should move another in its place, as cpuc does): its pages are read
  // when they are needed, and a file that was cut short ends the process with SIGBUS. Afterwards it is not needed any more.
  // Throws Error: no such file, no bundle, damaged, not signed as it must be, or made for other versions or another CPU.
  static Model load(const std::string& path, const LoadOptions& options = {});
  // Of a bundle that is open already. torch gets the file when `checks.graph` is ready, and weights are used when `checks.weights` is.
  static Model load(const Bundle& bundle, Checks checks);

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const Manifest& manifest() const;
  // The outputs by name. Throws Error naming the tensor that does not fit the signature, or if an operator has no kernel on this CPU, and
  // std::bad_alloc.
  Tensors run(const Tensors& inputs) const;

 private:
  struct Loaded;
  explicit Model(std::unique_ptr<Loaded> loaded);
  std::unique_ptr<Loaded> loaded_;
};

// A loaded artifact of a text task: records in, answers out. `answers` may be called from several threads.
class TextModel {
 public:
  using Progress = std::function<void(size_t answered)>;

  // As Model's. Throws Error (bundle) too if the task or its tokenizer is not one of those that are answered from text.
  static TextModel load(const std::string& path, const LoadOptions& options = {});
  static TextModel load(const Bundle& bundle, Checks checks);

  const Manifest& manifest() const { return model_.manifest(); }
  // In the order of the records, batched by length. All records are checked first. Throws Error (input) naming the record and field, or
  // the option, that is wrong.
  std::vector<Json> answers(const Records& records, const Options& options = {}, const Progress& progress = {}) const;

 private:
  TextModel(Model model, TextEncoder encoder);
  std::vector<std::vector<Outputs>> run(const std::vector<std::vector<Encoding>>& rows, const Progress& progress) const;

  Model model_;
  TextEncoder encoder_;
  bool mixes_ = true;
};

}  // namespace cpuc
