// Text as Python's str sees it: by characters (code points), with its methods.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cpuc {

// Nothing in it but white space, as str.isspace has it.
bool is_blank(std::string_view text);
// Without white space at both ends, as str.strip.
std::string strip(std::string_view text);
// As str.lower: a capital sigma at the end of a word becomes a final one.
std::string lower(std::string_view text);
// Characters `begin` to `end`, less where there are not so many.
std::string slice(const std::u32string& text, size_t begin, size_t end);
// How many characters UTF-8 has.
size_t length(std::string_view text);
// The parts between commas; always one at least.
std::vector<std::string> split_at_commas(std::string_view text);

}  // namespace cpuc
