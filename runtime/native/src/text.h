// Text as errors and answers show it: the forms of Python, so that both runtimes say the same.
#pragma once

#include <string>

namespace cpuc {

// In quotes as Python's repr writes it, but for bytes beyond ASCII where `ascii`: each of those is one U+FFFD.
std::string in_quotes(const std::string& text, bool ascii = false);

// The shortest decimal that is this number, as Python's repr writes it; `value` must be finite.
std::string number_text(double value);

// What could move a terminal's cursor or turn its direction, escaped: names in bundles are anybody's.
std::string printable(const std::string& text);

}  // namespace cpuc
