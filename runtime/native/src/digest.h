// SHA-256 in hexadecimal, as the manifest holds it, through OpenSSL's libcrypto.
#pragma once

#include <string>
#include <string_view>

#include "archive.h"

namespace cpuc {

// Of a member. Throws Error if the file ends before the member does.
std::string sha256(const File& file, const Member& member);

std::string sha256(std::string_view data);

}  // namespace cpuc
