// Reads records as cpuc-run does, on each line of standard input a file's name and, after a tab, its bytes in hexadecimal: prints on one
// line what they are as JSON, or the error.
#include <iostream>
#include <string>

#include "error.h"
#include "records.h"

namespace {

std::string from_hexadecimal(const std::string& digits) {
  std::string bytes;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

const char* name_of(cpuc::Form form) {
  return form == cpuc::Form::record ? "record" : form == cpuc::Form::list ? "list" : "lines";
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    const size_t tab = line.find('\t');
    try {
      const cpuc::Records records = cpuc::parse_records(from_hexadecimal(line.substr(tab + 1)), line.substr(0, tab));
      const cpuc::Json found = {{"form", name_of(records.form)},
                                {"names", records.names},
                                {"values", records.values},
                                {"formatted", records.values.empty() ? "" : cpuc::format_answers(records.values, records.form)}};
      std::cout << cpuc::write_json(found) << std::endl;
    } catch (const cpuc::Error& error) {
      std::cout << cpuc::write_json({{"error", error.what()}}) << std::endl;
    }
  }
}
