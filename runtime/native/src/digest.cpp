#include "digest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <memory>

#include "error.h"

namespace cpuc {

std::string sha256(const File& file, const Member& member) {
  constexpr uint64_t chunk = 1 << 20;
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  bool good = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
  for (uint64_t done = 0; good && done < member.size;) {
    const std::string data = file.read(member.offset + done, std::min(chunk, member.size - done));
    good = !data.empty() && EVP_DigestUpdate(context.get(), data.data(), data.size()) == 1;
    done += data.size();
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  if (!good || EVP_DigestFinal_ex(context.get(), digest, &size) != 1)
    throw Error(Kind::bundle, file.path() + ": member '" + member.name + "' cannot be read: copy the file again");
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += "0123456789abcdef"[digest[i] >> 4];
    text += "0123456789abcdef"[digest[i] & 15];
  }
  return text;
}

}  // namespace cpuc
