#include "signature.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "error.h"
#include "text.h"

namespace cpuc {
namespace {

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

const std::string context = "cpuc bundle signature 1\n";
constexpr size_t key_size = 32, signature_size = 64;
constexpr std::streamsize max_key = 64 * 1024;

[[noreturn]] void unreadable() {
  throw Error(Kind::bundle, "signature.json is not readable: the file was damaged or altered");
}

std::string from_base64(const std::string& text) {
  // OpenSSL's decoder passes over spaces around the text.
  const bool plain = text.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=") == std::string::npos;
  std::string bytes(text.size() / 4 * 3 + 3, '\0');
  const int count = !plain || text.size() % 4 != 0 ? -1
                                                   : EVP_DecodeBlock(reinterpret_cast<unsigned char*>(bytes.data()),
                                                                     reinterpret_cast<const unsigned char*>(text.data()),
                                                                     static_cast<int>(text.size()));
  if (count < 0) unreadable();
  const size_t padding = text.size() >= 2 ? static_cast<size_t>((text.back() == '=') + (text[text.size() - 2] == '=')) : 0;
  bytes.resize(static_cast<size_t>(count) - padding);
  return bytes;
}

// As OpenSSH shows keys: SHA-256 of the raw bytes, in base64 without its padding.
std::string fingerprint(const std::string& raw) {
  unsigned char digest[EVP_MAX_MD_SIZE], text[2 * EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (EVP_Digest(raw.data(), raw.size(), digest, &size, EVP_sha256(), nullptr) != 1) return "SHA256:?";
  const int count = EVP_EncodeBlock(text, digest, static_cast<int>(size));
  std::string encoded(reinterpret_cast<char*>(text), static_cast<size_t>(count));
  return "SHA256:" + encoded.substr(0, encoded.find('='));
}

Key read_public_key(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(static_cast<size_t>(max_key), '\0');
  if (!file || !file.read(text.data(), max_key).eof() || file.bad()) {
    if (!file.is_open() || file.bad()) throw Error(Kind::input, path + ": cannot be read: " + std::strerror(errno));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free);
  Key key(PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr), EVP_PKEY_free);
  ERR_clear_error();
  if (!key || EVP_PKEY_get_base_id(key.get()) != EVP_PKEY_ED25519)
    throw Error(Kind::input, path + ": holds no Ed25519 public key in PEM form: make one with 'openssl pkey -in key.pem -pubout -out key.pub.pem'");
  return key;
}

bool verifies(const Key& key, const std::string& signature, const std::string& message) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> digest(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  const auto bytes = [](const std::string& text) { return reinterpret_cast<const unsigned char*>(text.data()); };
  return digest && EVP_DigestVerifyInit(digest.get(), nullptr, nullptr, nullptr, key.get()) == 1 &&
         EVP_DigestVerify(digest.get(), bytes(signature), signature.size(), bytes(message), message.size()) == 1;
}

}  // namespace

Signature Signature::from_json(const std::string& text) {
  if (text.rfind("\xEF\xBB\xBF", 0) == 0 || text.find('\0') != std::string::npos) unreadable();
  const nlohmann::json raw = nlohmann::json::parse(text, nullptr, false);
  const auto field = [&](const char* name) {
    if (!raw.is_object() || raw.size() != 3 || !raw.contains(name) || !raw[name].is_string()) unreadable();
    return raw[name].get<std::string>();
  };
  const std::string algorithm = field("algorithm");
  Signature given{from_base64(field("public_key")), from_base64(field("signature"))};
  if (algorithm != "ed25519")
    throw Error(Kind::bundle, "signed with algorithm " + in_quotes(algorithm) + ", which this cpuc does not know: update cpuc");
  if (given.public_key.size() != key_size || given.signature.size() != signature_size)
    throw Error(Kind::bundle, "signature.json holds no Ed25519 signature: the file was damaged or altered");
  return given;
}

void check_signature(const std::optional<Signature>& signature, const std::string& manifest, const std::string& trust) {
  const Key key = read_public_key(trust);
  if (!signature)
    throw Error(Kind::bundle, "is not signed, and only bundles signed by " + trust + " are trusted: sign it with 'cpuc sign'");
  std::string raw(key_size, '\0');
  size_t size = key_size;
  EVP_PKEY_get_raw_public_key(key.get(), reinterpret_cast<unsigned char*>(raw.data()), &size);
  if (signature->public_key != raw)
    throw Error(Kind::bundle, "is signed by " + fingerprint(signature->public_key) + ", and only " + trust + " (" + fingerprint(raw) +
                                  ") is trusted: do not use this file");
  if (!verifies(key, signature->signature, context + manifest))
    throw Error(Kind::bundle, "the signature is not one of this manifest by " + trust + ": the file was altered; do not use it");
}

}  // namespace cpuc
