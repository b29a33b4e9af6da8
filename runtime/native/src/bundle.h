// The bundle: an archive, its manifest, and its signature if it has one, as runtime/bundle.py reads them.
#pragma once

#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "archive.h"
#include "manifest.h"
#include "signature.h"

namespace cpuc {

struct LoadOptions {
  std::optional<std::string> trust;  // a PEM file with an Ed25519 public key, by which the bundle must be signed
  bool check_digests = true;         // leave it on unless the file was verified otherwise
};

// Comparisons under way. Getting one raises what is wrong.
struct Checks {
  std::future<void> graph;    // of all that says what is to be done: code, constants, tokenizer, and small tensors
  std::future<void> weights;  // of the rest, which is only numbers
  bool before_loading;        // whether torch is to read those after they were compared: it takes their sizes from the graph

  // Waits for the weights, too; a second time does nothing.
  void finish() {
    if (weights.valid()) weights.get();
  }
};

struct Bundle {
  std::unique_ptr<File> file;
  std::map<std::string, Member> members;
  Manifest manifest;

  // Reads the structure and the manifest, and neither the weights nor anything that is executed. With `trust`, a PEM file with
  // an Ed25519 public key, the bundle must be signed by it, which is checked before anything that it says is read. Throws Error.
  static Bundle open(const std::string& path, const std::optional<std::string>& trust);

  // An extra file, by its name below extra/. Throws Error if it is absent or does not match its digest.
  std::string read(const std::string& name) const;

  // Compares the SHA-256 of every member with the manifest. Throws Error naming one that differs.
  void check_digests() const;

  // The same on other threads, if the options ask for it; the bundle must live as long. Throws Error if they do not and the bundle's
  // signature was asked for, which covers digests.
  Checks start_checking(const LoadOptions& options) const;

 private:
  void compare(const Member& member, const std::string& digest) const;
  void check(const std::vector<const Member*>& some) const;
};

}  // namespace cpuc
