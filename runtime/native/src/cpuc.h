// libcpuc: runs the artifacts that `cpuc compile` writes, without Python.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "bundle.h"
#include "error.h"
#include "tensors.h"

namespace cpuc {

struct LoadOptions {
  std::optional<std::string> trust;  // a PEM file with an Ed25519 public key, by which the bundle must be signed
  bool check_digests = true;         // leave it on unless the file was verified otherwise
};

// A loaded artifact. `run` may be called from several threads.
class Model {
 public:
  // Throws Error: no such file, no bundle, damaged, not signed as it must be, or made for other versions or another CPU.
  static Model load(const std::string& path, const LoadOptions& options = {});
  // Of a bundle that is open already, whose signature `signed_by_trusted` says was checked.
  static Model load(const Bundle& bundle, bool signed_by_trusted, bool check_digests);

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const Manifest& manifest() const;
  // The outputs by name. Throws Error naming the tensor that does not fit the signature.
  Tensors run(const Tensors& inputs) const;

 private:
  struct Loaded;
  explicit Model(std::unique_ptr<Loaded> loaded);
  std::unique_ptr<Loaded> loaded_;
};

}  // namespace cpuc
