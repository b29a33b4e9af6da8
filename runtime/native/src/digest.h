// SHA-256 of a member, through OpenSSL's libcrypto.
#pragma once

#include <string>

#include "archive.h"

namespace cpuc {

// In hexadecimal, as the manifest holds it. Throws Error if the file ends before the member does.
std::string sha256(const File& file, const Member& member);

}  // namespace cpuc
