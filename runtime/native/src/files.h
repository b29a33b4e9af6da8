// Files as cpuc-run reads and writes them: streams by the name "-", a target that is whole or absent.
#pragma once

#include <string>

namespace cpuc {

// Throws Error (input) if it cannot be read.
std::string read_input(const std::string& source);

// Throws Error early if `target` could not be written at the end: it exists and `force` is not given, or its folder is not there.
void check_writable(const std::string& target, bool force);

// To a file beside `target` that is moved there, or to standard output. Throws Error if that fails; then nothing is left behind, nor
// after SIGINT, SIGTERM or SIGHUP, which this sets handlers for. Not from several threads at once.
void write_output(const std::string& target, const std::string& data, bool force);

}  // namespace cpuc
