#include "digest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

#include "error.h"

namespace cpuc {
namespace {

class Hash {
 public:
  Hash() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) { check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1); }

  void update(std::string_view data) { check(EVP_DigestUpdate(context_.get(), data.data(), data.size()) == 1); }

  std::string hexadecimal() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    check(EVP_DigestFinal_ex(context_.get(), digest, &size) == 1);
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
      text += "0123456789abcdef"[digest[i] >> 4];
      text += "0123456789abcdef"[digest[i] & 15];
    }
    return text;
  }

 private:
  static void check(bool good) {
    if (!good) throw std::runtime_error("libcrypto cannot compute SHA-256");
  }

  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string sha256(const File& file, const Member& member) {
  // Of a size that stays in the second cache.
  std::vector<char> buffer(std::min<uint64_t>(256 << 10, member.size));
  Hash hash;
  for (uint64_t done = 0; done < member.size;) {
    const std::string_view data(buffer.data(), file.read_into(buffer.data(), member.offset + done, std::min(buffer.size(), member.size - done)));
    if (data.empty()) throw Error(Kind::bundle, file.path() + ": member '" + member.name + "' cannot be read: copy the file again");
    hash.update(data);
    done += data.size();
  }
  return hash.hexadecimal();
}

std::string sha256(std::string_view data) {
  Hash hash;
  hash.update(data);
  return hash.hexadecimal();
}

}  // namespace cpuc
