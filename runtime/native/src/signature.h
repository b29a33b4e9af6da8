// Signatures of bundles, as runtime/signature.py makes and checks them: Ed25519 over the manifest.
#pragma once

#include <optional>
#include <string>

namespace cpuc {

constexpr uint64_t max_signature = 4096;

// The member extra/signature.json; both values are raw bytes.
struct Signature {
  std::string public_key, signature;

  // Throws Error if the member has another form.
  static Signature from_json(const std::string& text);
};

// Throws Error unless `signature` is that of `manifest` by the public key in the PEM file `trust`.
void check_signature(const std::optional<Signature>& signature, const std::string& manifest, const std::string& trust);

}  // namespace cpuc
